#!/usr/bin/env python3
"""Train every model by every scheme, and with every gate, for three steps, and
keep what came of it.

The global batches are the same however many processes share them, so that the
parameters must be the same too. From the root of the project:

> python -m tests.integration.processes FOLDER
> torchrun --nproc_per_node=2 -m tests.integration.processes FOLDER

Authors
 * SpeechBrain-EE contributors 2026
"""

import os
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import speechbrain as sb
import torch
from sentencepiece import SentencePieceProcessor
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.encoder import CategoricalEncoder

from speechbrain_ee.brains import (
    DownstreamClassifier,
    EarlyExitAED,
    EarlyExitCTC,
)
from speechbrain_ee.downstreams import UtteranceClassifier
from speechbrain_ee.heads import (
    AttentionDecoder,
    AttentionHeads,
    BeamSearch,
    CTCHeads,
)
from speechbrain_ee.inference import FrozenTeacher
from speechbrain_ee.interfaces import WeightedSum
from tests.unit.encoders.backbones import NUM_LAYERS, build
from tests.unit.gates.gates import ROWS as GATES
from tests.unit.inference.models import train_tokenizer
from tests.unit.objectives.schemes import BLOCKS, make_objective

STEPS = 3
# Utterances of a global batch; other lengths in every process.
SAMPLES = (16000, 9000, 12000, 14500)
TEXTS = ("ABCDEF", "FEED", "A CAB", "CA FE")
SAMPLE_RATE = 16000
VOCABULARY = 14
MARKS = {"bos": 2, "eos": 3}
RUN_OPTS = {
    "device": "cpu",
    "distributed_backend": "gloo",
    "noprogressbar": True,
}


def make_ctc(exit_layers, width):
    """CTC heads."""
    return CTCHeads(exit_layers, width, VOCABULARY)


def make_attention(exit_layers, width, tied_decoder):
    """CTC heads and decoders."""
    return AttentionHeads(
        exit_layers,
        width,
        VOCABULARY,
        decoder=partial(AttentionDecoder, nhead=2, num_layers=1, d_ffn=16),
        search=BeamSearch(),
        bos_index=MARKS["bos"],
        eos_index=MARKS["eos"],
        tied_decoder=tied_decoder,
    )


def make_modules(backbone, make_exits, exit_layers, seed):
    """Encoder and exits, always with the same random weights."""
    encoder = build(backbone).encoder
    torch.manual_seed(seed)
    return {
        "encoder": encoder,
        "exits": make_exits(exit_layers, encoder.output_size),
    }


def make_brain(backbone, tokenizer, objective, kind, make_exits, gate=None):
    """What trains exits, without dropout."""
    teacher = None
    if getattr(objective, "needs_teacher", False):
        teacher = FrozenTeacher(
            make_modules(backbone, make_ctc, [NUM_LAYERS - 1], seed=1),
            tokenizer,
            SAMPLE_RATE,
        )
    modules = make_modules(backbone, make_exits, [1, 2, NUM_LAYERS], seed=0)
    modules["encoder"].attach(gate)
    for module in modules.values():
        remove_dropout(module)
    return kind(
        tokenizer=SimpleNamespace(sp=tokenizer),
        objective=objective,
        teacher=teacher,
        modules=modules,
        # Not Adam: where a gradient is next to zero, it makes steps of the same
        # size out of differences in rounding.
        opt_class=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        hparams={"sample_rate": SAMPLE_RATE},
        run_opts=RUN_OPTS,
    )


def make_classifier(gate):
    """What fine-tunes a HuBERT to two classes, without dropout."""
    upstream = build("hubert-base").encoder
    upstream.model.masked_spec_embed.requires_grad_(False)  # never used
    upstream.attach(gate)
    torch.manual_seed(0)
    interface = WeightedSum(upstream.state_sizes)
    remove_dropout(upstream)
    labels = CategoricalEncoder()
    labels.update_from_iterable(range(2))
    rate = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    return DownstreamClassifier(
        {"label": labels},
        modules={
            "upstream": upstream,
            "interface": interface,
            "downstream": UtteranceClassifier(interface.output_size, [2]),
        },
        opt_class=rate,
        encoder_opt_class=rate,
        hparams={},
        run_opts=RUN_OPTS,
    )


CTC = {"kind": EarlyExitCTC, "make_exits": make_ctc}
CONFORMER = "conformer-RelPosMHAXL"
# Name to backbone, Brain and exits.
MODELS = {
    "conformer_ctc": (CONFORMER, CTC),
    **{
        f"conformer_aed_{name}": (
            CONFORMER,
            {
                "kind": EarlyExitAED,
                "make_exits": partial(make_attention, tied_decoder=tied),
            },
        )
        for name, tied in (("one_decoder", True), ("decoder_per_exit", False))
    },
    "wav2vec2_ctc": ("wav2vec2-base", CTC),
    "hubert_ctc": ("hubert-base", CTC),
    "wavlm_ctc": ("wavlm-base", CTC),
}
CASES = [(model, scheme) for model in MODELS for scheme in sorted(BLOCKS)]
# Those with a gate are trained by the plain sum; and one has classes.
GATE = "gate: "
CLASSIFIER = "hubert_classes"
CASES += [
    (model, GATE + row)
    for model in ("conformer_ctc", "wavlm_ctc", CLASSIFIER)
    for row in GATES
]


def remove_dropout(module):
    """Set all dropout to 0."""
    for part in module.modules():
        if isinstance(part, torch.nn.modules.dropout._DropoutNd):
            part.p = 0.0
        elif isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.0


def make_batches(tokenizer, rank, processes):
    """The share of a process in the global batches."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for step in range(STEPS):
        utterances = [
            {
                "id": f"{step}-{row}",
                "sig": torch.randn(samples, generator=generator),
                "tokens": torch.tensor(tokenizer.encode_as_ids(text)),
                "wrd": text,
                "labels": torch.tensor([row % 2]),
            }
            for row, (samples, text) in enumerate(zip(SAMPLES, TEXTS))
        ]
        batches.append(PaddedBatch(utterances[rank::processes]))
    return batches


def parameters_of(brain):
    """A copy of them; names as without DDP."""
    return {
        f"{key}.{name}": parameter.detach().clone()
        for key, module in brain.unwrapped.items()
        for name, parameter in module.named_parameters()
    }


def train(model, scheme, tokenizer, rank, processes):
    """Three steps of one model by one scheme.

    Returns
    -------
    dict
        Its parameters ``before`` and ``after``, by name.
    """
    objective, gate = scheme, None
    if scheme.startswith(GATE):
        objective, gate = "uniform", GATES[scheme.removeprefix(GATE)]()
    torch.manual_seed(0)
    if model == CLASSIFIER:
        brain = make_classifier(gate)
    else:
        backbone, parts = MODELS[model]
        objective = make_objective(objective)
        brain = make_brain(backbone, tokenizer, objective, gate=gate, **parts)
    assert not brain.find_unused_parameters
    batches = make_batches(tokenizer, rank, processes)
    brain.modules.train()
    with torch.no_grad():
        once, again = (
            brain.compute_forward(batches[0], sb.Stage.TRAIN)[0]
            for _ in range(2)
        )
    assert torch.equal(once, again), "something is random"
    before = parameters_of(brain)
    loader = torch.utils.data.DataLoader(
        batches, batch_size=None, collate_fn=lambda batch: batch
    )
    brain.fit(range(1), loader)
    assert brain.optimizer_step == STEPS
    wrapped = isinstance(
        brain.modules[brain.encoder_name],
        torch.nn.parallel.DistributedDataParallel,
    )
    assert wrapped == (processes > 1)
    return {"before": before, "after": parameters_of(brain)}


def main(folder):
    """Train all cases, and save them as this process has them."""
    rank = int(os.environ.get("RANK", 0))
    processes = int(os.environ.get("WORLD_SIZE", 1))
    sb.utils.distributed.ddp_init_group(RUN_OPTS)
    with TemporaryDirectory() as own:
        train_tokenizer(Path(own) / "char.model", labels=12, **MARKS)
        tokenizer = SentencePieceProcessor(str(Path(own) / "char.model"))
    done = {case: train(*case, tokenizer, rank, processes) for case in CASES}
    torch.save(done, Path(folder) / f"{rank}_of_{processes}.pt")
    if processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
