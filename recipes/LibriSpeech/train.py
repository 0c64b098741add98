#!/usr/bin/env python3
"""Train a CTC speech recogniser with early exits on LibriSpeech, or on any
corpus in its layout, and evaluate every exit and the loop that leaves early.

The encoder, the exits and the selectors are built by the YAML; swapping one is
a change of one block there. To run this recipe:

> python train.py hparams/conformer_ctc_ee.yaml --data_folder LibriSpeech

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
from speechbrain.tokenizers.SentencePiece import SentencePiece
from speechbrain.utils.distributed import run_on_main

from speechbrain_ee.brains import EarlyExitCTC


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
    with open(hparams_file, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides)
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
    tokenizer = SentencePiece(
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
        exit_weights=hparams["exit_weights"],
        lr_annealing=hparams["lr_annealing"],
        wav_augment=hparams["wav_augment"],
        train_logger=hparams["train_logger"],
        select_by=hparams["select_by"],
        average=hparams["averaged_checkpoints"],
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
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
    for name, dataset in tests.items():
        brain.evaluate_exits(
            dataset,
            name,
            folder=hparams["output_folder"],
            scores=hparams["traced_scores"],
            selectors=hparams["selectors"],
            loader_kwargs=hparams["test_dataloader_opts"],
        )
