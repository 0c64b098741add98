#!/usr/bin/env python3
r"""Train a CTC speech recogniser with early exits on LibriSpeech, or on any
corpus in its layout, and evaluate every exit and the loop that leaves early.

The encoder, the exits and the selectors are built by the YAML. Strategies are
swapped by naming a block of the folder ``hparams`` at the top of the project.
To run this recipe:

> python train.py hparams/conformer_ctc_ee.yaml --data_folder LibriSpeech
> python train.py hparams/conformer_ctc_ee.yaml --data_folder LibriSpeech \
      --objective rising --selectors patience --scores cheap

Authors
 * SpeechBrain-EE contributors 2026
"""

import sys
from pathlib import Path

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataio import read_audio
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils.distributed import run_on_main

from speechbrain_ee.analysis.calibration import calibrated_thresholds
from speechbrain_ee.analysis.report import write_report
from speechbrain_ee.brains import EarlyExitCTC
from speechbrain_ee.inference.export import write_inference
from speechbrain_ee.overrides import resolve_overrides
from speechbrain_ee.tokenizer import train_tokenizer

BLOCKS = Path(__file__).resolve().parents[2] / "hparams"


def dataio_prepare(hparams, tokenizer):
    """Datasets for training, model selection and each test set.

    Arguments
    ---------
    hparams : dict
        The loaded YAML.
    tokenizer : SentencePiece
        Turns words into labels.

    Returns
    -------
    train : DynamicItemDataset
        The training splits.
    valid : DynamicItemDataset
        The split that chooses checkpoints.
    tests : dict
        Name to DynamicItemDataset.
    """

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return read_audio(wav)

    @sb.utils.data_pipeline.takes("wrd")
    @sb.utils.data_pipeline.provides("tokens")
    def text_pipeline(wrd):
        return torch.LongTensor(tokenizer.sp.encode_as_ids(wrd))

    def load(csv_path):
        return sb.dataio.dataset.DynamicItemDataset.from_csv(
            csv_path=csv_path,
            replacements={"data_root": hparams["data_folder"]},
            dynamic_items=[audio_pipeline, text_pipeline],
            output_keys=["id", "sig", "tokens", "wrd"],
        )

    train = load(hparams["train_csv"])
    valid = load(hparams["valid_csv"]).filtered_sorted(sort_key="duration")
    tests = {
        split: load(Path(hparams["save_folder"]) / f"{split}.csv")
        for split in hparams["test_splits"]
    }
    tests = {
        k: v.filtered_sorted(sort_key="duration") for k, v in tests.items()
    }
    return train, valid, tests


if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    overrides = resolve_overrides(hparams_file, overrides, BLOCKS)
    with open(hparams_file, encoding="utf-8") as fin:
        # Their keys are checked; a new selector is no mistake.
        hparams = load_hyperpyyaml(fin, overrides, overrides_must_match=False)
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )

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

    # Label 0 is the blank; no sentence marks.
    tokenizer = train_tokenizer(
        model_dir=hparams["save_folder"],
        vocab_size=hparams["output_neurons"],
        annotation_train=hparams["train_csv"],
        annotation_read="wrd",
        model_type=hparams["token_type"],
        pad_id=hparams["blank_index"],
        unk_id=hparams["blank_index"] + 1,
    )
    train, valid, tests = dataio_prepare(hparams, tokenizer)

    brain = EarlyExitCTC(
        tokenizer=tokenizer,
        objective=hparams["objective"],
        lr_annealing=hparams["lr_annealing"],
        wav_augment=hparams["wav_augment"],
        train_logger=hparams["train_logger"],
        error_rate_computer=hparams["error_rate_computer"],
        select_by=hparams["select_by"],
        average=hparams["averaged_checkpoints"],
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.check_strategies(hparams["scores"], hparams["selectors"])
    brain.check_lengths(train, targets=True)
    for dataset in (valid, *tests.values()):
        brain.check_lengths(dataset)

    train_loader_kwargs = {
        "batch_sampler": DynamicBatchSampler(
            train,
            length_func=lambda x: float(x["duration"]),
            **hparams["dynamic_batch_sampler"],
        ),
        "num_workers": hparams["num_workers"],
        "collate_fn": PaddedBatch,
    }
    brain.fit(
        hparams["epoch_counter"],
        train,
        valid,
        train_loader_kwargs=train_loader_kwargs,
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )

    folder = Path(hparams["output_folder"])
    if brain.debug and not brain.debug_persistently:
        folder = folder / "debug"  # not over the files of a finished run
        folder.mkdir(exist_ok=True)
    evaluation = {
        "folder": folder,
        "scores": hparams["scores"],
        "groups": hparams["groups"],
        "loader_kwargs": hparams["test_dataloader_opts"],
    }
    traces = brain.evaluate_exits(valid, hparams["valid_split"], **evaluation)
    chosen = calibrated_thresholds(
        traces, hparams["scores"], **hparams["calibrate"]
    )
    selectors = {**hparams["selectors"], **chosen}
    for name, dataset in tests.items():
        brain.evaluate_exits(dataset, name, selectors=selectors, **evaluation)

    run_on_main(
        write_inference,
        kwargs={
            "folder": folder,
            "hparams_file": Path(hparams["output_folder"]) / "hyperparams.yaml",
            "encoder": brain.encoder,
            "exits": brain.exits,
            "tokenizer_model": tokenizer.prefix_model_file + ".model",
            "normalizer": hparams["normalize"],
            "selector": next(iter(chosen.values()), None),
        },
    )
    run_on_main(write_report, [folder])
