#!/usr/bin/env python3
r"""Train a speech recogniser with early exits on LibriSpeech, or on any
corpus in its layout, and evaluate every exit and the loop that leaves early;
or layers that a gate chooses.

The encoder, the exits (CTC, or CTC and attention), the Brain that trains them
and the selectors are built by the YAML. Strategies are swapped by naming a
block of the folder ``hparams`` at the top of the project.
To run this recipe:

> python train.py hparams/conformer_ctc_ee.yaml --data_folder LibriSpeech
> python train.py hparams/conformer_ctc_ee.yaml --data_folder LibriSpeech \
      --objective rising --selectors patience --scores cheap
> python train.py hparams/conformer_ctc_single.yaml \
      --data_folder LibriSpeech --gate input_conditioned

Authors
 * SpeechBrain-EE contributors 2026
"""

import sys
from pathlib import Path

import speechbrain as sb
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils.distributed import run_on_main

from speechbrain_ee.experiment import (
    evaluate_and_export,
    leave_ddp_group,
    load_experiment,
    make_datasets,
)
from speechbrain_ee.inference import load_teacher
from speechbrain_ee.noise import NoiseFolder, noisy_sets
from speechbrain_ee.tokenizer import train_tokenizer

BLOCKS = Path(__file__).resolve().parents[2] / "hparams"

if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    hparams = load_experiment(hparams_file, overrides, BLOCKS)

    from librispeech_prepare import prepare_librispeech

    run_on_main(
        prepare_librispeech,
        kwargs={
            "data_folder": hparams["data_folder"],
            "save_folder": hparams["save_folder"],
            "splits": [
                *hparams["train_splits"],
                hparams["valid_split"],
                *hparams["test_splits"],
            ],
            "merge_lst": hparams["train_splits"],
            "merge_name": Path(hparams["train_csv"]).name,
            "min_duration": hparams["min_duration"],
            "max_duration": hparams["max_duration"],
            "skip_prep": hparams["skip_prep"],
        },
    )

    tokenizer = train_tokenizer(
        model_dir=hparams["save_folder"],
        vocab_size=hparams["output_neurons"],
        annotation_train=hparams["train_csv"],
        annotation_read="wrd",
        model_type=hparams["token_type"],
        **hparams["tokenizer_opts"],
    )
    train, valid, tests = make_datasets(
        tokenizer,
        data_folder=hparams["data_folder"],
        train=hparams["train_csv"],
        valid=hparams["valid_csv"],
        tests={
            split: Path(hparams["save_folder"]) / f"{split}.csv"
            for split in hparams["test_splits"]
        },
    )
    groups = hparams["groups"]
    if hparams["noise_folder"] is not None:
        noise = NoiseFolder(hparams["noise_folder"], hparams["noise_seed"])
        tests = noisy_sets(tests, noise, hparams["test_snrs"])
        groups = {**groups, "snr": "snr"}

    brain = hparams["brain"](
        tokenizer=tokenizer,
        teacher=load_teacher(hparams["teacher"]),
        start=load_teacher(hparams["init_from"], key="init_from"),
        modules=hparams["modules"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    gates = {
        "gates": hparams["eval_gates"],
        "target_layers": hparams["target_layers"],
    }
    brain.check_strategies(hparams["scores"], hparams["selectors"], **gates)
    brain.check_lengths(train, targets=True)
    for dataset in (valid, *tests.values()):
        brain.check_lengths(dataset)

    brain.fit(
        hparams["epoch_counter"],
        train,
        valid,
        train_loader_kwargs={
            "batch_sampler": DynamicBatchSampler(
                train,
                length_func=lambda x: float(x["duration"]),
                **hparams["dynamic_batch_sampler"],
            ),
            "num_workers": hparams["num_workers"],
            "collate_fn": PaddedBatch,
        },
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )
    evaluate_and_export(
        brain,
        (hparams["valid_split"], valid),
        tests,
        output_folder=hparams["output_folder"],
        scores=hparams["scores"],
        selectors=hparams["selectors"],
        calibrate=hparams["calibrate"],
        groups=groups,
        loader_kwargs=hparams["test_dataloader_opts"],
        **gates,
    )
    leave_ddp_group()
