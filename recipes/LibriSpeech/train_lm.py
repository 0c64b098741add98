#!/usr/bin/env python3
r"""Train the Transformer language model that attention decoders search with.

Its text is that of the training splits, or a file with a sentence per line,
such as LibriSpeech's own (https://www.openslr.org/11, unpacked). Its labels are
those of a recogniser with the same train_splits, output_neurons, token_type and
tokenizer_opts. To run this recipe, and to use its result:

> python train_lm.py hparams/lm_transformer.yaml --data_folder LibriSpeech \
      --text_file librispeech-lm-norm.txt
> python train.py hparams/conformer_aed_ee.yaml --data_folder LibriSpeech \
      --lm results/lm_transformer/1234

Authors
 * SpeechBrain-EE contributors 2026
"""

import sys
from pathlib import Path

import speechbrain as sb
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.distributed import run_on_main

from speechbrain_ee.experiment import leave_ddp_group, load_experiment
from speechbrain_ee.language_model import Sentences, save_lm
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
            "splits": [*hparams["train_splits"], hparams["valid_split"]],
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
    brain = hparams["brain"](
        modules=hparams["modules"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.fit(
        hparams["epoch_counter"],
        Sentences(tokenizer.sp, hparams["text_file"]),
        Sentences(tokenizer.sp, hparams["valid_csv"]),
        train_loader_kwargs={
            **hparams["train_dataloader_opts"],
            "collate_fn": PaddedBatch,
        },
        valid_loader_kwargs={
            **hparams["valid_dataloader_opts"],
            "collate_fn": PaddedBatch,
        },
    )
    brain.on_evaluate_start(min_key="loss")
    run_on_main(
        save_lm,
        [
            hparams["output_folder"],
            brain.unwrapped["lm_model"],
            tokenizer.prefix_model_file + ".model",
        ],
    )
    leave_ddp_group()
