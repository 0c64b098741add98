#!/usr/bin/env python3
r"""Train and evaluate a task of SUPERB behind an upstream: classes of
utterances, speaker verification, or phone recognition.

What combines the layers of the upstream is a block of ``hparams/interfaces``,
the upstream one of ``hparams/upstreams``, where utterances leave it one of
``hparams/exits``. There is a YAML for each kind of task; in that of
classification the upstream can be fine-tuned, and a gate (``hparams/gates``)
can choose its layers. To run this recipe:

> python train.py hparams/classification.yaml --data_folder IEMOCAP \
      --train_csv train.csv --valid_csv valid.csv --test_csvs "[test.csv]" \
      --label_columns "[emotion]" --interface hierarchical_conv
> python train.py hparams/classification.yaml --data_folder IEMOCAP \
      --train_csv train.csv --valid_csv valid.csv --test_csvs "[test.csv]" \
      --label_columns "[emotion]" --interface last_layer \
      --upstream "{freeze: False}" --gate input_conditioned
> python train.py hparams/classification.yaml --data_folder ESC-50 --fold 1
> python train.py hparams/speaker_verification.yaml --data_folder VoxCeleb1 \
      --train_csv train.csv --valid_csv valid.csv \
      --test_csvs "[vox1_o.csv]" --test_trials "[veri_test.txt]"
> python train.py hparams/phone_recognition.yaml --data_folder LibriSpeech \
      --lexicon "[librispeech-lexicon.txt]"

Authors
 * SpeechBrain-EE contributors 2026
"""

import sys
from pathlib import Path

import speechbrain as sb
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.sampler import ReproducibleRandomSampler
from speechbrain.utils.distributed import run_on_main

from speechbrain_ee.analysis.verification import read_trials
from speechbrain_ee.batches import SortedBatches
from speechbrain_ee.experiment import (
    evaluate_downstream,
    fit_downstream_parts,
    leave_ddp_group,
    load_experiment,
    make_label_datasets,
    make_utterance_datasets,
)
from speechbrain_ee.noise import NoiseFolder, noisy_sets, noisy_trials

BLOCKS = Path(__file__).resolve().parents[2] / "hparams"


def utterances(hparams):
    """Data of tasks that label utterances.

    Returns the size of the downstream's output, what the brain needs to know,
    and the sets.
    """
    from esc_prepare import prepare_esc
    from superb_prepare import prepare_superb, prepare_trials

    if hparams.get("fold") is not None:
        settings = {
            "data_folder": hparams["data_folder"],
            "save_folder": Path(hparams["save_folder"]) / "esc",
            "fold": hparams["fold"],
            "esc10": hparams["esc10"],
        }
        skip = {"skip_prep": hparams["skip_prep"]}
        run_on_main(prepare_esc, kwargs=settings | skip)
        files = prepare_esc(**settings, skip_prep=True)
        hparams |= files
        hparams["preparation"] |= files
    elif None in (hparams["train_csv"], hparams["valid_csv"]):
        raise ValueError(
            "train_csv, valid_csv: name the CSVs, or a fold of a corpus in "
            "the layout of ESC-50."
        )
    run_on_main(prepare_superb, kwargs=hparams["preparation"])
    folder = Path(hparams["save_folder"])
    tests = [Path(file).stem for file in hparams["test_csvs"]]
    valid_name = Path(hparams["valid_csv"]).stem
    label_encoders, train, valid, tests = make_utterance_datasets(
        folder,
        hparams["label_columns"],
        data_folder=hparams["data_folder"],
        train=folder / Path(hparams["train_csv"]).name,
        valid=folder / f"{valid_name}.csv",
        tests={name: folder / f"{name}.csv" for name in tests},
        unseen_labels=hparams["task"] == "verification",
        max_seconds=hparams["max_seconds"],
    )
    classes = [len(encoder) for encoder in label_encoders.values()]
    size = {"num_classes": classes}
    known = {"label_encoders": label_encoders}
    if hparams["task"] == "verification":
        (speakers,) = classes
        size = {"num_speakers": speakers}
        run_on_main(prepare_trials, kwargs=hparams["trial_preparation"])
        trials = {
            name: read_trials(folder / f"trials_{name}.txt")
            for name in (valid_name, *tests)
        }
        known |= {"trials": trials, "valid_name": valid_name}
    return size, known, train, (valid_name, valid), tests


def phones(hparams):
    """Data of phone recognition; returns the same."""
    from librispeech_prepare import prepare_librispeech
    from superb_prepare import prepare_phones

    folder = Path(hparams["save_folder"])
    valid_name, tests = hparams["valid_split"], hparams["test_splits"]
    run_on_main(
        prepare_librispeech,
        kwargs={
            "data_folder": hparams["data_folder"],
            "save_folder": folder,
            "splits": [*hparams["train_splits"], valid_name, *tests],
            "merge_lst": hparams["train_splits"],
            "merge_name": "train_splits.csv",
            "min_duration": hparams["min_duration"],
            "max_duration": hparams["max_duration"],
            "check_audio": hparams["check_audio"],
            "skip_prep": hparams["skip_prep"],
        },
    )
    run_on_main(
        prepare_phones,
        kwargs={
            "save_folder": folder,
            "splits": ["train_splits", valid_name, *tests],
            "lexicon": hparams["lexicon"],
            "stress": hparams["stress"],
            "g2p": hparams["g2p"],
            "skip_prep": hparams["skip_prep"],
        },
    )
    label_encoder, train, valid, tests = make_label_datasets(
        folder / "labels.txt",
        data_folder=hparams["data_folder"],
        train=folder / "phones_train_splits.csv",
        valid=folder / f"phones_{valid_name}.csv",
        tests={name: folder / f"phones_{name}.csv" for name in tests},
    )
    size = {"labels": len(label_encoder)}
    known = {"label_encoder": label_encoder}
    return size, known, train, (valid_name, valid), tests


if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    hparams = load_experiment(hparams_file, overrides, BLOCKS)

    make_data = phones if hparams["task"] == "phones" else utterances
    size, known, train, (valid_name, valid), tests = make_data(hparams)
    groups = hparams["groups"]
    if hparams["noise_folder"] is not None:
        noise = NoiseFolder(hparams["noise_folder"], hparams["noise_seed"])
        snrs = hparams["test_snrs"]
        if "trials" in known:
            known["trials"] |= noisy_trials(known["trials"], tests, snrs)
        tests = noisy_sets(tests, noise, snrs)
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
    gates = {
        "gates": hparams.get("eval_gates"),  # not in all tasks
        "target_layers": hparams.get("target_layers", ()),
    }
    brain.check_gates(**gates)
    for dataset in (train, valid, *tests.values()):
        brain.check_lengths(dataset)
    batches = {"batch_size": hparams["batch_size"]}
    if hparams["task"] == "phones":
        train = brain.spellable(train)
        with train.output_keys_as(["duration"]):
            lengths = [float(item["duration"]) for item in train]
        batches = {
            "batch_sampler": SortedBatches(
                lengths,
                num_batches=hparams["iterations_per_epoch"],
                seed=hparams["seed"],
                **batches,
            )
        }
    else:
        # Not sorted: of one length are often utterances of one class.
        batches["sampler"] = ReproducibleRandomSampler(
            train,
            seed=hparams["seed"],
            num_samples=hparams["batch_size"] * hparams["iterations_per_epoch"],
        )

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
        (valid_name, valid),
        tests,
        output_folder=hparams["output_folder"],
        groups=groups,
        loader_kwargs=hparams["test_dataloader_opts"],
        **gates,
    )
    leave_ddp_group()
