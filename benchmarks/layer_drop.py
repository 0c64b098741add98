#!/usr/bin/env python3
"""What dropped layers save, as ratios measured in one interleaved run.

> python benchmarks/layer_drop.py conformer
> python benchmarks/layer_drop.py small --part batch --repeats 20

Timed are encoder layers, the head of the last layer and the selector; the front
end is apart, and so are transcripts, which at random weights have a label for
each frame. Full depth is the same encoder without a gate. Weights are random,
so that a selector would choose the same layers for all: its network runs, and
its choice is replaced by one drawn for each utterance, n of 12. Limits: time
at n layers is at most 1.05 (batches of one) and 1.15 (16 utterances of 2 to 20
s with masks of their own) times n / 12 of full depth.

Authors
 * SpeechBrain-EE contributors 2026
"""

import argparse

import torch
from early_exit import (
    MODELS,
    SAMPLE_RATE,
    Model,
    conformer,
    paired,
    verdict,
)
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR

from speechbrain_ee.costs import ExitCosts
from speechbrain_ee.encoders import SpeechBrainEncoder
from speechbrain_ee.exits import NeverLeave
from speechbrain_ee.gates import InputConditionedGate
from speechbrain_ee.gates.base import keep_top
from speechbrain_ee.heads import CTCHeads
from speechbrain_ee.heads.output import SilentOutput
from speechbrain_ee.runtime import EarlyExitLoop

TARGETS = (4, 6, 8, 10)
SECONDS = (2, 5, 10, 20)  # of utterances that are alone
LAST = 12


def small() -> Model:
    """Of the size of recipes/LibriSpeech/hparams/conformer_ctc_ee_small."""
    transformer = TransformerASR(
        tgt_vocab=30,
        input_size=320,
        d_model=96,
        nhead=4,
        num_encoder_layers=LAST,
        num_decoder_layers=0,
        d_ffn=256,
        kernel_size=15,
        encoder_module="conformer",
        attention_type="RoPEMHA",
        positional_encoding=None,
        normalize_before=True,
        causal=False,
    )
    cnn = ConvolutionFrontEnd(
        (8, 10, 80),
        num_blocks=2,
        num_layers_per_block=1,
        out_channels=[16, 16],
        kernel_sizes=[3, 3],
        strides=[2, 2],
        residuals=[False, False],
    )
    encoder = SpeechBrainEncoder(transformer, Fbank(n_mels=80), cnn=cnn)
    return Model(encoder, CTCHeads([LAST], 96, 30), 14.0)


class MuteHeads(torch.nn.Module):
    """Heads whose labels nobody writes down."""

    def __init__(self, heads: CTCHeads):
        super().__init__()
        self.heads = heads
        self.exit_layers = heads.exit_layers
        self.normed_layers = heads.normed_layers

    def read(self, hidden, frames, exit_layer):
        """See ``CTCHeads.read``."""
        output = self.heads.read(hidden, frames, exit_layer)
        return SilentOutput(output.log_probs, frames, exit_layer)


class DrawnSelector(InputConditionedGate):
    """A selector that works, and whose choice is then drawn."""

    def build(self):
        """See ``LayerGate.build``."""
        super().build()
        self.choices = {}

    def plan(self, state):
        """See ``LayerGate.plan``."""
        super().plan(state)
        if self.target_layers not in self.choices:  # in the run that warms up
            scores = torch.rand(len(state), self.num_layers)
            drawn = keep_top(scores, self.counts(state)).float()
            self.choices[self.target_layers] = drawn
        return self.choices[self.target_layers]


def measure(model: Model, wavs, wav_lens, targets, repeats) -> dict:
    """Seconds without a gate (None) and at each target, interleaved."""
    loop = EarlyExitLoop(
        model.encoder,
        MuteHeads(model.heads).eval(),
        NeverLeave(),
        ExitCosts(model.encoder, model.heads, [LAST]),
        exit_layers=[LAST],
    )
    gate = DrawnSelector(summary=model.summary).eval()
    seconds = {target: [] for target in (None, *targets)}
    for repeat in range(repeats + 1):  # the first one warms up
        order = [*seconds]
        first = repeat % len(order)
        for target in order[first:] + order[:first]:
            model.encoder.attach(None if target is None else gate)
            if target is not None:
                gate.set_target(target)
            left = loop(wavs, wav_lens)
            assert target is None or (left.layers_run == target).all()
            if repeat:
                seconds[target].append(float(left.seconds.sum()))
    model.encoder.attach(None)
    return seconds


def report(what: str, seconds: dict, limit: float) -> None:
    """A line for each target."""
    full = seconds.pop(None)
    for target, times in seconds.items():
        ratio = paired(times, full) / (target / LAST)
        verdict(f"{what}, {target} of {LAST} / (full x n/{LAST})", ratio, limit)
    seconds[None] = full


def share_of_selector(model: Model) -> None:
    """MACs of the selector beside those of the backbone."""
    frames = torch.tensor([50, 500])
    costs = ExitCosts(model.encoder, model.heads, [LAST])
    plain = costs(LAST, frames)
    model.encoder.attach(DrawnSelector(summary=model.summary))
    costs.count_gate(model.encoder)
    share = ((costs(LAST, frames) - plain) / plain).max().item()
    model.encoder.attach(None)
    verdict("MACs of the selector / backbone", share, 0.01)


@torch.no_grad()
def main() -> None:
    """Parse the command line and run."""
    models = {**MODELS, "small": small}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "model", choices=models, nargs="?", default=conformer.__name__
    )
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--utterances", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--targets", type=int, nargs="+", default=TARGETS)
    parser.add_argument("--summary", default="statistics")
    parser.add_argument(
        "--part", choices=["alone", "batch"], help="default: both"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = models[args.model]()
    model.encoder.eval()
    model.heads.eval()
    model.summary = args.summary
    print(
        f"{args.model}: {args.threads} thread(s), median of {args.repeats} "
        f"interleaved runs, torch {torch.__version__}"
    )
    share_of_selector(model)
    if args.part != "batch":
        for count in SECONDS:
            wavs = 0.1 * torch.randn(1, count * SAMPLE_RATE)
            seconds = measure(model, wavs, None, args.targets, args.repeats)
            report(f"one of {count} s", seconds, 1.05)
    if args.part != "alone":
        lengths = torch.linspace(2, 20, args.utterances) / 20
        lengths = lengths[torch.randperm(args.utterances)]
        wavs = 0.1 * torch.randn(args.utterances, 20 * SAMPLE_RATE)
        seconds = measure(model, wavs, lengths, args.targets, args.repeats)
        report(f"{args.utterances} of 2 to 20 s", seconds, 1.15)


if __name__ == "__main__":
    main()
