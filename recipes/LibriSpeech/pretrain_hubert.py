#!/usr/bin/env python3
r"""Pre-train a HuBERT on speech without labels: LibriSpeech, any corpus in its
layout, and further audio that CSVs with the columns ID, duration and wav list.

The targets are clusters of MFCCs or, in a second iteration, of the states of a
layer of the first model. The result is a folder in Hugging Face format,
``hubert`` in the output folder, which recipes and blocks take as ``source``.
To run this recipe:

> python pretrain_hubert.py hparams/hubert_pretrain_small.yaml \
      --data_folder LibriSpeech
> python pretrain_hubert.py hparams/hubert_pretrain_small.yaml \
      --data_folder LibriSpeech --output_folder results/second \
      --target_source results/hubert_pretrain_small/1234/hubert \
      --target_layer 6

Authors
 * SpeechBrain-EE contributors 2026
"""

import sys
from pathlib import Path

import speechbrain as sb
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils.distributed import run_on_main

from speechbrain_ee.brains.hubert import save_hubert
from speechbrain_ee.clusters import (
    ClusterTargets,
    cluster_speech,
    clusters_of_run,
    labels_per_frame,
)
from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
from speechbrain_ee.experiment import (
    hours_of,
    leave_ddp_group,
    load_experiment,
    make_speech_dataset,
)

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
            "skip_prep": hparams["skip_prep"],
        },
    )
    longest = hparams["max_seconds"]
    train = make_speech_dataset(
        [hparams["train_csv"], *hparams["extra_csvs"]],
        hparams["data_folder"],
        min_seconds=hparams["min_duration"],
        max_seconds=longest,
        random_crops=True,
    )
    valid = make_speech_dataset(
        [hparams["valid_csv"]], hparams["data_folder"], max_seconds=longest
    )

    upstream, layer = hparams["mfcc"], 0
    if hparams["target_source"] is not None:
        layer = hparams["target_layer"]
        upstream = HuggingFaceEncoder(
            hparams["target_source"], freeze=True, num_layers=layer
        )
    source = f"{hparams['target_source'] or 'MFCCs'}, layer {layer}"
    clusters = clusters_of_run(
        Path(hparams["save_folder"]) / "clusters.npz",
        source,
        find=lambda: cluster_speech(
            train,
            upstream,
            layer,
            hparams["num_clusters"],
            max_frames=hparams["cluster_frames"],
            seed=hparams["seed"],
            source=source,
            device=run_opts.get("device", "cpu"),
        ),
    )

    subsampling = labels_per_frame(upstream, hparams["encoder"])
    brain = hparams["brain"](
        targets=ClusterTargets(upstream, layer, clusters, subsampling),
        modules=hparams["modules"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
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
    brain.evaluate(
        valid,
        min_key="loss",
        test_loader_kwargs=hparams["valid_dataloader_opts"],
    )
    run_on_main(
        save_hubert,
        [Path(hparams["output_folder"]) / "hubert", hparams["model"], clusters],
        {
            "facts": {
                "utterances": len(train),
                "hours": hours_of(train),
                "splits": hparams["train_splits"],
                "extra_csvs": [Path(x).name for x in hparams["extra_csvs"]],
                "targets": source,
                "clusters": len(clusters),
                "inertia": clusters.inertia,
                "steps": brain.optimizer_step,
                "epochs": hparams["epoch_counter"].current,
                "valid": {
                    "split": hparams["valid_split"],
                    **brain.valid_figures,
                },
            }
        },
    )
    leave_ddp_group()
