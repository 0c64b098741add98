#!/usr/bin/env python3
r"""Train and evaluate the recogniser of ML-SUPERB behind a frozen upstream.

What combines the layers of the upstream is a block of ``hparams/interfaces``,
the upstream one of ``hparams/upstreams``, where utterances leave it one of
``hparams/exits``. There is a YAML for each track. To run this recipe:

> python train.py hparams/monolingual_asr.yaml --data_folder ML-SUPERB
> python train.py hparams/monolingual_asr.yaml --data_folder ML-SUPERB \
      --language fra1 --upstream wavlm_base --interface hierarchical_conv

Authors
 * SpeechBrain-EE contributors 2026
"""

import sys
from pathlib import Path

import speechbrain as sb
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.distributed import run_on_main

from speechbrain_ee.batches import SortedBatches
from speechbrain_ee.experiment import (
    evaluate_downstream,
    fit_downstream_parts,
    leave_ddp_group,
    load_experiment,
    make_label_datasets,
)
from speechbrain_ee.noise import NoiseFolder, noisy_sets

BLOCKS = Path(__file__).resolve().parents[2] / "hparams"

if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    hparams = load_experiment(hparams_file, overrides, BLOCKS)

    from mlsuperb_prepare import prepare_mlsuperb

    run_on_main(prepare_mlsuperb, kwargs=hparams["preparation"])

    label_encoder, train, valid, tests = make_label_datasets(
        hparams["label_file"],
        data_folder=hparams["data_folder"],
        train=hparams["train_csv"],
        valid=hparams["valid_csv"],
        tests={"test": hparams["test_csv"]},
    )
    groups = hparams["groups"]
    if hparams["noise_folder"] is not None:
        noise = NoiseFolder(hparams["noise_folder"], hparams["noise_seed"])
        tests = noisy_sets(tests, noise, hparams["test_snrs"])
        groups = {**groups, "snr": "snr"}

    # As many outputs as the data has labels.
    downstream = hparams["downstream"](labels=len(label_encoder))
    hparams["checkpointer"].add_recoverable("downstream", downstream)
    brain = hparams["brain"](
        label_encoder=label_encoder,
        modules={**hparams["modules"], "downstream": downstream},
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    for dataset in (train, valid, *tests.values()):
        brain.check_lengths(dataset)
    train = brain.spellable(train)
    with train.output_keys_as(["duration"]):
        lengths = [float(item["duration"]) for item in train]

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
            "batch_sampler": SortedBatches(lengths, **hparams["batches"]),
            "num_workers": hparams["num_workers"],
            "collate_fn": PaddedBatch,
        },
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )
    evaluate_downstream(
        brain,
        ("dev", valid),
        tests,
        output_folder=hparams["output_folder"],
        groups=groups,
        loader_kwargs=hparams["test_dataloader_opts"],
    )
    leave_ddp_group()
