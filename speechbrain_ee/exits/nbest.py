"""The K most probable CTC transcripts of an utterance.

Log-probabilities are sums over all alignments that the beam has held, so they
are lower bounds of log P(transcript | X) and exact once nothing is pruned.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import math
import warnings
from functools import lru_cache

import numpy as np
import torch

# Stands for log(0): the decoders make NaN of sums of infinities.
_IMPOSSIBLE = -1e30
# Hypotheses further than this behind the best one are pruned: none but those
# with an impossible label in them.
_BEAM_THRESHOLD = 1e29
# A CUDA kernel of torchaudio keeps one entry per beam in an array this long.
_CUDA_BEAM_LIMIT = 128
# Seconds per hypothesis, frame and label are about 5e-7, and starting the
# processes takes a few seconds: below this many steps, one process is faster.
_STEPS_WORTH_PROCESSES = 10_000_000


def ctc_nbest(
    log_probs: torch.Tensor,
    frames: torch.Tensor,
    k: int,
    blank_index: int = 0,
    beam_size: int | None = None,
    beam_size_token: int | None = None,
    jobs: int | None = None,
) -> list[list[tuple[tuple[int, ...], float]]]:
    """The N-best lists of a batch, by prefix beam search without a lexicon.

    CPU tensors go through flashlight. It holds Python's global lock while it
    decodes, so utterances are shared out over processes, not threads. CUDA
    tensors go through torchaudio's CUDA decoder where that can do the job
    (blank at 0, beam of at most 128 and at most the vocabulary) and are copied
    to the CPU otherwise, with a warning.

    Arguments
    ---------
    log_probs : torch.Tensor
        Log-probabilities of shape (batch, time, vocabulary). Minus infinity
        is allowed.
    frames : torch.Tensor
        Number of real frames of each utterance, of shape (batch,).
    k : int
        How many transcripts to return at most.
    blank_index : int
        Index of the CTC blank.
    beam_size : int, optional
        How many prefixes are held, at least ``k``. flashlight counts a prefix
        that ends in a blank apart from the same one that does not, hence
        ``2 * k`` unless given; on CUDA ``k``.
    beam_size_token : int, optional
        How many labels are tried at each frame; all of them unless given.
        CPU only.
    jobs : int, optional
        Number of processes (CPU only). Unless given: one for little work,
        else all cores.

    Returns
    -------
    list of list of tuple
        For each utterance, pairs (labels, log-probability), best first and
        all different. Empty where the log-probabilities hold NaN or allow no
        transcript; without any frame the empty transcript is certain.

    Example
    -------
    >>> log_probs = torch.tensor([[[0.4, 0.6], [0.5, 0.5]]]).log()
    >>> for tokens, log_prob in ctc_nbest(log_probs, torch.tensor([2]), 5)[0]:
    ...     print(tokens, round(math.exp(log_prob), 4))
    (1,) 0.8
    () 0.2
    """
    on_gpu = log_probs.is_cuda
    if beam_size is None:
        beam_size = k if on_gpu else 2 * k
    if not 1 <= k <= beam_size:
        raise ValueError(
            f"k must be from 1 to the beam size ({beam_size}), not {k}"
        )
    vocabulary = log_probs.shape[-1]
    if on_gpu and (
        blank_index != 0 or beam_size > min(vocabulary, _CUDA_BEAM_LIMIT)
    ):
        warnings.warn(
            "decoding on the CPU: the CUDA decoder needs the blank at 0 (here "
            f"{blank_index}) and a beam (here {beam_size}) of at most "
            f"{_CUDA_BEAM_LIMIT} and at most the vocabulary ({vocabulary})",
            stacklevel=2,
        )
        on_gpu = False
    emissions = log_probs.detach().float().clamp(min=_IMPOSSIBLE)
    if not on_gpu:
        emissions = emissions.cpu()
    utterances = [
        part[:length]
        for part, length in zip(emissions, frames.tolist(), strict=True)
    ]
    rows = [
        row
        for row, part in enumerate(utterances)
        if len(part) and not part.isnan().any()
    ]
    nbest = [[] if len(part) else [((), 0.0)] for part in utterances]
    chosen = [utterances[row] for row in rows]
    if chosen and on_gpu:
        decoded = _decode_on_gpu(chosen, beam_size)
    else:
        decoded = _decode_on_cpu(
            chosen, blank_index, beam_size, beam_size_token or vocabulary, jobs
        )
    for row, hypotheses in zip(rows, decoded, strict=True):
        nbest[row] = _best(hypotheses, k)
    return nbest


def _best(hypotheses, k):
    """The ``k`` best of (labels, log-probability), equal labels merged."""
    merged = {}
    for tokens, log_prob in hypotheses:
        if log_prob > -_BEAM_THRESHOLD:
            before = merged.get(tokens, -math.inf)
            merged[tokens] = float(np.logaddexp(before, log_prob))
    return sorted(merged.items(), key=lambda item: -item[1])[:k]


def _decode_on_cpu(utterances, blank_index, beam_size, beam_size_token, jobs):
    """The hypotheses of each (time, vocabulary) CPU tensor."""
    from joblib import Parallel, delayed, effective_n_jobs

    if jobs is None:
        steps = beam_size * beam_size_token * sum(map(len, utterances))
        jobs = effective_n_jobs(-1) if steps > _STEPS_WORTH_PROCESSES else 1
    return Parallel(n_jobs=max(1, min(jobs, len(utterances))))(
        delayed(_decode)(part.numpy(), blank_index, beam_size, beam_size_token)
        for part in utterances
    )


def _decode(emissions, blank_index, beam_size, beam_size_token):
    """All hypotheses left in the beam for a (time, vocabulary) array."""
    decoder = _decoder(
        emissions.shape[1], blank_index, beam_size, beam_size_token
    )
    return [
        (tuple(hypothesis.tokens.tolist()), hypothesis.score)
        for hypothesis in decoder(torch.tensor(emissions)[None])[0]
    ]


@lru_cache(maxsize=8)
def _decoder(vocabulary, blank_index, beam_size, beam_size_token):
    """A flashlight decoder that sums over alignments and knows no words."""
    try:
        import flashlight.lib.text.decoder  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "N-best lists on the CPU need flashlight: "
            "pip install flashlight-text"
        ) from error
    from torchaudio.models.decoder import ctc_decoder

    # flashlight starts and ends each path with the silence label. With a real
    # label there, a transcript could not begin with it; the blank does no harm.
    blank = str(blank_index)
    return ctc_decoder(
        lexicon=None,
        tokens=[str(label) for label in range(vocabulary)],
        nbest=beam_size,
        beam_size=beam_size,
        beam_size_token=beam_size_token,
        beam_threshold=_BEAM_THRESHOLD,
        log_add=True,
        blank_token=blank,
        sil_token=blank,
    )


def _decode_on_gpu(utterances, beam_size):
    """The hypotheses of each (time, vocabulary) CUDA tensor, blank at 0."""
    from torchaudio.models.decoder import cuda_ctc_decoder

    device = utterances[0].device
    lengths = [len(part) for part in utterances]
    # The decoder skips frames whose blank is certain and leaves the score of
    # an utterance with no other frame unset: keep log-probabilities below 0.
    emissions = torch.nn.utils.rnn.pad_sequence(utterances, batch_first=True)
    with torch.cuda.device(device):
        decoder = cuda_ctc_decoder(
            [str(label) for label in range(emissions.shape[-1])],
            nbest=beam_size,
            beam_size=beam_size,
            blank_skip_threshold=1.0,
        )
        results = decoder(
            emissions.clamp(max=-1e-30),
            torch.tensor(lengths, dtype=torch.int32, device=device),
        )
    return [
        [
            (tuple(torch.as_tensor(one.tokens).tolist()), float(one.score))
            for one in hypotheses
        ]
        for hypotheses in results
    ]
