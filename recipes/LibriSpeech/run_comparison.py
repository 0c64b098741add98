#!/usr/bin/env python3
r"""Early exits, single exits, schemes and layer dropping: train all of
docs/results.md that is of spoken commands.

Runs that are done are skipped, so the command can be stopped and given again.
The small files of each run (traces, curves, pictures, logs) are copied to
docs/results/, from where they can be analysed without training again. With a
folder of noise, gates that look at the input are also evaluated in noise. Runs
of the HuBERT want one as pretrain_hubert.py writes it. To run:

> python run_comparison.py --data_folder FOLDER --hubert FOLDER \
      --noise_folder FOLDER --jobs 2

Authors
 * SpeechBrain-EE contributors 2026
"""

import argparse
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from run_recipe import run_recipe

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "comparison"
KEPT = HERE.parents[1] / "docs" / "results" / "small"
KEPT_FILES = (
    "traces_*.csv",
    "curve_*.csv",
    "loop_*.csv",
    "curve_*.png",
    "exits_*.png",
    "scores_*.png",
    "gates_*.csv",
    "masks_*.csv",
    "report.md",
    "train_log.txt",
)
CTC = "hparams/conformer_ctc_ee_small.yaml"
AED = "hparams/conformer_aed_ee_small.yaml"
HUBERT = "hparams/hubert_ctc_ee.yaml"
SEEDS = (1234, 1235, 1236)
SCHEMES = (
    *("rising", "falling", "inverse_confidence"),
    *("alternate", "random_exits"),
    *("last_exit_posteriors", "last_exit_transcripts"),
    *("teacher_posteriors", "teacher_transcripts"),
)


def single(layers, seed):
    """Overrides of a model whose only exit is its last layer."""
    return [
        f"--num_layers={layers}",
        f"--exit_layers=[{layers}]",
        f"--seed={seed}",
        "--scores=[entropy, hypothesis_posterior]",
        "--selectors=never",
        "--calibrate={scores: []}",
    ]


def scheme(objective, seed):
    """Overrides of a model trained by another scheme than the plain sum."""
    teacher = []
    if objective.startswith("teacher"):
        # At the top of RUNS, so that it is done by then.
        teacher = [f"--teacher=results/comparison/early_exit_seed{seed}"]
    return [
        f"--seed={seed}",
        f"--objective={objective}",
        *teacher,
    ]


def gated(gate, seed, *more):
    """Overrides of a model some of whose layers are dropped.

    It has the inner exits of the others, without which twelve layers do not
    learn here; gates are judged at the last one.
    """
    dropping = "{}" if gate.startswith("input_conditioned") else "dropping"
    return [
        *(f"--seed={seed}", f"--gate={gate}", f"--eval_gates={dropping}"),
        *("--scores=[entropy, hypothesis_posterior]", "--selectors=never"),
        "--calibrate={scores: []}",
        *more,
    ]


# The small HuBERT is fine-tuned: 30 epochs of some 51 steps.
FINE_TUNING = (
    *("--train_splits=[commands_train]", "--valid_split=commands_dev"),
    *("--test_splits=[commands_test]", "--number_of_epochs=30", "--lr=0.002"),
    *("--lr_encoder=0.001", "--warmup_steps=200", "--total_steps=1600"),
    "--output_neurons=30",
    "--dynamic_batch_sampler={max_batch_length: 30, num_buckets: 8}",
    "--test_dataloader_opts={batch_size: 1}",
)
# Name to YAML and overrides.
RUNS = {
    **{f"early_exit_seed{s}": (CTC, [f"--seed={s}"]) for s in SEEDS},
    **{
        f"single_{layers}_layers_seed{seed}": (CTC, single(layers, seed))
        for layers, seed in (
            *((12, 1234), (10, 1234), (8, 1234), (6, 1234), (4, 1234)),
            (2, 1234),
            *((12, 1235), (12, 1236)),
        )
    },
    # Half the rate: at 0.002 twelve layers without inner exits do not learn;
    # nor do they at this one.
    "single_12_layers_lr_0.001_seed1234": (
        CTC,
        [*single(12, 1234), "--lr=0.001"],
    ),
    # Nor do eight: with inner exits, and judged at the last one, they can.
    **{
        f"early_exit_{layers}_layers_seed1234": (
            CTC,
            [
                *(f"--num_layers={layers}", "--seed=1234"),
                f"--exit_layers={[*range(2, layers + 1, 2)]}",
            ],
        )
        for layers in (8, 10)
    },
    "early_exit_read_speech": (
        CTC,
        ["--train_splits=[train]", "--valid_split=dev", "--test_splits=[test]"],
    ),
    **{
        f"scheme_{name}_seed{seed}": (CTC, scheme(name, seed))
        for seed in SEEDS
        for name in SCHEMES
    },
    **{
        f"gate_{gate}_seed{seed}": (CTC, gated(gate, seed))
        for seed in SEEDS
        for gate in (
            *("random_0.5", "input_conditioned", "random_0.2", "ldasr"),
            *("input_conditioned_layerwise", "input_conditioned_dependent"),
        )
    },
    # The selector alone, in front of what random dropping has trained, or
    # another selector.
    **{
        f"gate_{name}_seed{seed}": (
            CTC,
            gated(
                *("input_conditioned", seed, "--gate_only=True"),
                f"--objective={objective}",
                f"--init_from=results/comparison/gate_{before}_seed{seed}",
            ),
        )
        for seed in SEEDS
        for name, objective, before in (
            ("selector_only", "last_exit", "random_0.5"),
            ("selector_only_all_exits", "uniform", "random_0.5"),
            ("selector_again", "last_exit", "input_conditioned"),
        )
    },
    "hubert_early_exit_seed1234": (HUBERT, [*FINE_TUNING, "--seed=1234"]),
    **{
        f"hubert_gate_{gate}_seed1234": (
            HUBERT,
            [*FINE_TUNING, *gated(gate, 1234)],
        )
        for gate in ("random_0.5", "input_conditioned", "random_0.2", "ldasr")
    },
    "conformer_aed_seed1234": (
        AED,
        [
            "--seed=1234",
            "--scores=[entropy, max_probability, margin, hypothesis_posterior, "
            "token_entropy, beam_confidence, kl_to_previous]",
        ],
    ),
}


def train(name, options):
    """Train and evaluate one model, unless that is done.

    Arguments
    ---------
    name : str
        One of RUNS.
    options : argparse.Namespace
        With ``data_folder``, ``hubert`` and ``noise_folder``.

    Returns
    -------
    bool
        Whether it is done.
    """
    output = RESULTS / name
    hparams_file, overrides = RUNS[name]
    if hparams_file == HUBERT:
        overrides = [*overrides, f"--source={options.hubert}"]
    command = "train.py", hparams_file, *overrides
    command += (f"--data_folder={options.data_folder}",)
    if not run_recipe(HERE, output, *command):
        return False
    _keep(output, KEPT / name)
    looks = any("--gate=input_conditioned" in one for one in overrides)
    if options.noise_folder and looks:
        in_noise = (
            *(f"--save_folder={output / 'save'}", "--test_only"),
            f"--noise_folder={options.noise_folder}",
        )
        if not run_recipe(HERE, output / "in_noise", *command, *in_noise):
            return False
        _keep(output / "in_noise", KEPT / name / "in_noise", ["gates_*.csv"])
    return True


def _keep(output, kept, patterns=KEPT_FILES):
    """Copy what is small."""
    kept.mkdir(parents=True, exist_ok=True)
    for pattern in patterns:
        for file in output.glob(pattern):
            shutil.copy(file, kept)


def main():
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_folder", type=os.path.abspath, required=True)
    parser.add_argument("--hubert", type=os.path.abspath)
    parser.add_argument("--noise_folder", type=os.path.abspath)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument(
        "--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN"
    )
    options = parser.parse_args()
    if options.hubert is None and any(
        RUNS[name][0] == HUBERT for name in options.only
    ):
        parser.error("runs of the HuBERT want its folder: --hubert")
    with ThreadPoolExecutor(options.jobs) as pool:
        done = list(pool.map(partial(train, options=options), options.only))
    return not all(done)


if __name__ == "__main__":
    sys.exit(main())
