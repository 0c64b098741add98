#!/usr/bin/env python3
"""What early exits save and cost, as ratios measured in one interleaved run.

> python benchmarks/early_exit.py conformer
> python benchmarks/early_exit.py wav2vec2 --repeats 20

Timed are encoder layers, heads and scores of one padded batch, on random
weights; the front end is reported apart. ``stock`` is the library's own layers,
read by the same heads, without scores. Utterances leave at exits drawn at
random with a given mean, so that exits are mixed; entropy and posterior are
computed at every exit all the same.

Authors
 * SpeechBrain-EE contributors 2026
"""

import argparse
import time
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR

from speechbrain_ee.costs import ExitCosts
from speechbrain_ee.encoders import LayerwiseEncoder, SpeechBrainEncoder
from speechbrain_ee.exits import RandomExit, get_score
from speechbrain_ee.heads import CTCHeads
from speechbrain_ee.objectives import ExitLossSum, ExitPredictions
from speechbrain_ee.runtime import EarlyExitLoop

EXIT_LAYERS = [2, 4, 6, 8, 10, 12]
SAMPLE_RATE = 16000


@dataclass
class Model:
    """An encoder, its heads, and how often its labels are spoken."""

    encoder: LayerwiseEncoder
    heads: CTCHeads
    tokens_per_second: float


def conformer() -> Model:
    """The 31 M Conformer of recipes/LibriSpeech/hparams/conformer_ctc_ee."""
    transformer = TransformerASR(
        tgt_vocab=256,
        input_size=640,
        d_model=256,
        nhead=8,
        num_encoder_layers=12,
        num_decoder_layers=0,
        d_ffn=2048,
        encoder_module="conformer",
        attention_type="regularMHA",
        normalize_before=True,
        causal=False,
        output_hidden_states=True,
    )
    cnn = ConvolutionFrontEnd(
        (8, 10, 80),
        num_blocks=2,
        num_layers_per_block=1,
        out_channels=[64, 32],
        kernel_sizes=[3, 3],
        strides=[2, 2],
        residuals=[False, False],
    )
    encoder = SpeechBrainEncoder(transformer, Fbank(n_mels=80), cnn=cnn)
    return Model(encoder, CTCHeads(EXIT_LAYERS, 256, 256), 5.0)


def wav2vec2() -> Model:
    """Base size: 12 layers of width 768, 32 characters."""
    from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder

    encoder = HuggingFaceEncoder("wav2vec2", pretrained=False)
    return Model(encoder, CTCHeads(EXIT_LAYERS, 768, 32), 14.0)


MODELS = {"conformer": conformer, "wav2vec2": wav2vec2}


def stock_layers(model: Model, state):
    """The library's own layers, and the same heads on their states."""
    encoder = model.encoder
    if isinstance(encoder, SpeechBrainEncoder):
        output, _, hidden = encoder.transformer.encoder(
            state.hidden,
            src_key_padding_mask=state.context["padding"],
            pos_embs=state.context["positions"],
        )
        states = [encoder.final_norm(hidden[k]) for k in EXIT_LAYERS[:-1]]
        return model.heads([*states, output])
    # Its forward also holds the positional convolution, which counts as front
    # end here: its layers, called as it calls them.
    out, hidden = state.hidden, []
    for k, layer in enumerate(encoder.layers, start=1):
        out = layer(out, attention_mask=state.context["mask"])
        if k in EXIT_LAYERS:
            hidden.append(out)
    return model.heads(hidden)


def read_scores(output) -> None:
    """Entropy and hypothesis posterior, as at every exit of a real system."""
    get_score("entropy")(output)
    get_score("hypothesis_posterior")(output)


class ScoredRandomExit(RandomExit):
    """Random exits, at the cost of those that two scores decide."""

    def __call__(self, output):
        """See ``ExitSelector``."""
        read_scores(output)
        return super().__call__(output)


def speak_at(model: Model, wavs, wav_lens, seconds: float) -> None:
    """Set the blanks so that random heads say as much as speech does.

    The cost of the hypothesis posterior goes with the transcript's length.
    """
    for head in model.heads.linear.values():
        torch.nn.init.normal_(head.weight)
    states, frames = model.encoder(
        wavs, wav_lens, EXIT_LAYERS, model.heads.normed_layers
    )
    wanted = model.tokens_per_second * seconds
    for k, hidden in zip(EXIT_LAYERS, states):
        bias = model.heads.linear[str(k)].bias
        low, high = -1000.0, 1000.0
        for _ in range(20):
            bias.data[0] = (low + high) / 2
            output = model.heads.read(hidden, frames, k)
            spoken = int(output.greedy[1].sum())
            low, high = (
                (bias.data[0].item(), high)
                if spoken > wanted
                else (low, bias.data[0].item())
            )


@contextmanager
def timed(into: list):
    """Append the seconds that the block takes."""
    start = time.perf_counter()
    yield
    into.append(time.perf_counter() - start)


def inference(model: Model, wavs, wav_lens, mean_exit, repeats) -> dict:
    """Seconds of each way through the layers, interleaved."""
    ids = [str(i) for i in range(len(wavs))]
    costs = ExitCosts(model.encoder, model.heads)
    last = float(EXIT_LAYERS[-1])
    full = EarlyExitLoop(
        model.encoder, model.heads, ScoredRandomExit(last), costs
    )
    mixed = EarlyExitLoop(
        model.encoder, model.heads, ScoredRandomExit(mean_exit), costs
    )
    names = ("stock", "full", "mixed", "front end", "per batch", "scores")
    seconds = {name: [] for name in names}
    for repeat in range(repeats + 1):
        state = model.encoder.begin(wavs, wav_lens)
        with timed(seconds["stock"]):
            stock_layers(model, state)
        outputs, until = [], {}

        def note(output, account, outputs=outputs, until=until):
            outputs.append(output)
            until[output.exit_layer] = float(account.seconds.sum())

        left = full(wavs, wav_lens, ids, on_exit=note)
        seconds["full"].append(float(left.seconds.sum()))
        seconds["front end"].append(left.front_end_seconds)
        with timed(seconds["scores"]):
            for output in outputs:
                output.__dict__.pop("greedy", None)
                read_scores(output)
        left = mixed(wavs, wav_lens, ids)
        seconds["mixed"].append(float(left.seconds.sum()))
        seconds["per batch"].append(until[int(left.exit_layer.max())])
        if repeat == 0:  # warm-up
            seconds = {name: [] for name in names}
    depth = left.exit_layer.double()
    frames = left.frames.double()
    weighted = float((depth * frames).sum() / frames.sum())
    middle = {name: median(values) for name, values in seconds.items()}
    ratio = {
        "full / stock": paired(seconds["full"], seconds["stock"]),
        "mixed / full": paired(seconds["mixed"], seconds["full"]),
        "scores / full": paired(seconds["scores"], seconds["full"]),
        "per batch / full": paired(seconds["per batch"], seconds["full"]),
    }
    print(f"mean exit {depth.mean():.2f}, frame-weighted {weighted:.2f}")
    print("seconds: " + ", ".join(f"{k} {v:.3f}" for k, v in middle.items()))
    verdict("full depth / stock", ratio["full / stock"], 1.02)
    share = weighted / EXIT_LAYERS[-1]
    verdict(
        f"mixed exits / (full x {share:.3f})",
        ratio["mixed / full"] / share,
        1.05,
    )
    verdict("entropy + posterior / layers", ratio["scores / full"], 0.03)
    print(
        f"  for comparison, one stop for the whole batch (when its last "
        f"utterance is ready): {ratio['per batch / full']:.3f} of full depth; "
        f"mixed exits: {ratio['mixed / full']:.3f}"
    )


def training(model: Model, wavs, wav_lens, repeats) -> None:
    """A training step with six exits against one with the last alone."""
    model.encoder.train()
    size = model.encoder.output_size
    vocab = model.heads.vocab_size
    single = CTCHeads(EXIT_LAYERS[-1:], size, vocab)
    seconds = wav_lens * wavs.shape[1] / SAMPLE_RATE
    counts = (seconds * model.tokens_per_second).long()
    tokens = torch.randint(1, vocab, (len(wavs), int(counts.max())))
    parameters = [*model.encoder.parameters(), *model.heads.parameters()]
    optimizer = torch.optim.AdamW([*parameters, *single.parameters()])

    def step(heads):
        states, frames = model.encoder(
            wavs, wav_lens, heads.exit_layers, heads.normed_layers
        )
        predictions = ExitPredictions(
            heads.exit_layers, heads(states), frames, tokens, counts
        )
        ExitLossSum()(predictions).backward()
        optimizer.step()
        optimizer.zero_grad()

    times = {"six": [], "single": []}
    for repeat in range(repeats + 1):
        with timed(times["single"]):
            step(single)
        with timed(times["six"]):
            step(model.heads)
        if repeat == 0:
            times = {"six": [], "single": []}
    print(
        f"training step, {len(wavs)} utterances: six exits "
        f"{median(times['six']):.3f} s, single {median(times['single']):.3f} s"
    )
    verdict("six exits / single", paired(times["six"], times["single"]), 1.10)


def paired(ones: list, others: list) -> float:
    """Median of the ratios of runs that stand side by side."""
    return median(a / b for a, b in zip(ones, others, strict=True))


def verdict(what: str, ratio: float, limit: float) -> None:
    """One line: the ratio and whether it holds its limit."""
    word = "ok" if ratio <= limit else "ABOVE"
    print(f"  {what}: {ratio:.4f} (limit {limit}) {word}", flush=True)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", choices=MODELS, nargs="?", default="conformer")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--utterances", type=int, default=16)
    parser.add_argument("--training-utterances", type=int, default=4)
    parser.add_argument("--mean-exit", type=float, default=6.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--part", choices=["inference", "training"], help="default: both"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = MODELS[args.model]()
    model.encoder.eval()
    model.heads.eval()

    def batch(utterances):
        seconds = torch.linspace(2, 20, utterances)
        seconds = seconds[torch.randperm(utterances)]
        wavs = 0.1 * torch.randn(utterances, 20 * SAMPLE_RATE)
        return wavs, seconds / 20, float(seconds.sum())

    print(
        f"{args.model}: {args.utterances} utterances of 2 to 20 s, "
        f"{args.threads} thread(s), median of {args.repeats} interleaved runs, "
        f"torch {torch.__version__}"
    )
    if args.part != "training":
        with torch.no_grad():
            wavs, wav_lens, seconds = batch(args.utterances)
            speak_at(model, wavs, wav_lens, seconds)
            inference(model, wavs, wav_lens, args.mean_exit, args.repeats)
    if args.part != "inference":
        wavs, wav_lens, _ = batch(args.training_utterances)
        training(model, wavs, wav_lens, args.repeats)


if __name__ == "__main__":
    main()
