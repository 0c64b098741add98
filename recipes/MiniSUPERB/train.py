#!/usr/bin/env python3
r"""Train and evaluate a task of MiniSUPERB behind a frozen upstream: speech or
speaker recognition, enhancement, or separation.

What combines the layers of the upstream is a block of ``hparams/interfaces``,
the upstream one of ``hparams/upstreams``, where utterances leave it one of
``hparams/exits``. There is a YAML for each task. To run this recipe:

> python train.py hparams/asr.yaml --data_folder LibriSpeech
> python train.py hparams/sid.yaml --data_folder VoxCeleb1 \
      --exits daisy --branches results/branches/1234/branches
> python train.py hparams/se.yaml --data_folder VoiceBank
> python train.py hparams/ss.yaml --data_folder Libri2Mix --upstream wavlm_base

Authors
 * SpeechBrain-EE contributors 2026
"""

import sys
from pathlib import Path

import speechbrain as sb
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.sampler import ReproducibleRandomSampler
from speechbrain.utils.distributed import run_on_main

from speechbrain_ee.batches import SortedBatches
from speechbrain_ee.experiment import (
    evaluate_downstream,
    fit_downstream_parts,
    leave_ddp_group,
    load_experiment,
    make_label_datasets,
    make_source_datasets,
    make_utterance_datasets,
)
from speechbrain_ee.noise import NoiseFolder, noisy_sets

BLOCKS = Path(__file__).resolve().parents[2] / "hparams"


def make_data(hparams):
    """The data of a task.

    Returns what the downstream is made for, what the brain needs to know, and
    the sets.
    """
    from minisuperb_prepare import TASKS

    task, folder = hparams["task"], Path(hparams["save_folder"])
    run_on_main(TASKS[task], kwargs=hparams["preparation"])
    files = {
        "data_folder": hparams["data_folder"],
        "train": folder / "train.csv",
        "valid": folder / f"{hparams['valid_set']}.csv",
        "tests": {n: folder / f"{n}.csv" for n in hparams["test_sets"]},
    }
    if task == "asr":
        encoder, *sets = make_label_datasets(folder / "labels.txt", **files)
        return {"labels": len(encoder)}, {"label_encoder": encoder}, sets
    if task == "sid":
        encoders, *sets = make_utterance_datasets(
            folder, ["speaker"], max_seconds=hparams["max_seconds"], **files
        )
        classes = [len(encoder) for encoder in encoders.values()]
        return {"num_classes": classes}, {"label_encoders": encoders}, sets
    sets = make_source_datasets(hparams["source_columns"], **files)
    shift = hparams["modules"]["upstream"].frame_shift
    return {"frame_shift": shift}, {}, sets


if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    hparams = load_experiment(hparams_file, overrides, BLOCKS)

    size, known, (train, valid, tests) = make_data(hparams)
    groups = hparams["groups"]
    if hparams.get("noise_folder") is not None:  # a key of asr and sid
        noise = NoiseFolder(hparams["noise_folder"], hparams["noise_seed"])
        tests = noisy_sets(tests, noise, hparams["test_snrs"])
        groups = {**groups, "snr": "snr"}

    # As many outputs as the data has labels.
    downstream = hparams["downstream"](**size)
    hparams["checkpointer"].add_recoverable("downstream", downstream)
    brain = hparams["brain"](
        **known,
        modules={**hparams["modules"], "downstream": downstream},
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    for dataset in (train, valid, *tests.values()):
        brain.check_lengths(dataset)
    size, steps = hparams["batch_size"], hparams["iterations_per_epoch"]
    if hparams["task"] == "asr":
        train = brain.spellable(train)
        with train.output_keys_as(["duration"]):
            lengths = [float(item["duration"]) for item in train]
        batches = {
            "batch_sampler": SortedBatches(
                lengths, size, num_batches=steps, seed=hparams["seed"]
            )
        }
    else:
        batches = {
            "batch_size": size,
            "sampler": ReproducibleRandomSampler(
                train, seed=hparams["seed"], num_samples=size * steps
            ),
        }
    if hparams["feature_cache"] is not None:
        sets = {f"test_{name}": dataset for name, dataset in tests.items()}
        brain.use_cache(
            hparams["feature_cache"],
            {"train": train, "valid": valid, **sets},
            hparams["cache_dtype"],
        )

    fit_downstream_parts(
        brain,
        train,
        output_folder=hparams["output_folder"],
        loader_kwargs=hparams["valid_dataloader_opts"],
    )
    brain.fit(
        hparams["epoch_counter"],
        train,
        valid,
        train_loader_kwargs={
            **batches,
            "num_workers": hparams["num_workers"],
            "collate_fn": PaddedBatch,
        },
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )
    evaluate_downstream(
        brain,
        (hparams["valid_set"], valid),
        tests,
        output_folder=hparams["output_folder"],
        groups=groups,
        loader_kwargs=hparams["test_dataloader_opts"],
    )
    leave_ddp_group()
