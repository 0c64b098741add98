#!/usr/bin/env python3
r"""Train the branches of DAISY (arXiv 2406.05464): behind each layer of a
frozen upstream a linear head that tells clusters. The entropy of what it tells
will decide how deep to go.

No label of any task is read. The data is LibriSpeech, or any corpus in its
layout, and further audio that CSVs with the columns ID, duration and wav list.
The targets are what the upstream's own cluster head tells, or clusters that are
found by k-means. The result is the folder ``branches`` in the output folder. To
run this recipe:

> python train_branches.py hparams/branches.yaml --data_folder LibriSpeech
> python train_branches.py hparams/branches.yaml --data_folder LibriSpeech \
      --targets head --head_file hubert_base_ls960.pt
> python train_branches.py hparams/branches_small.yaml \
      --data_folder LibriSpeech --upstream "{source: hubert}"

Authors
 * SpeechBrain-EE contributors 2026
"""

import sys
from pathlib import Path

import speechbrain as sb
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils.distributed import run_on_main

from speechbrain_ee.clusters import (
    ClusterTargets,
    cluster_speech,
    clusters_of_run,
    labels_per_frame,
)
from speechbrain_ee.experiment import (
    evaluate_branches,
    hours_of,
    leave_ddp_group,
    load_experiment,
    make_speech_dataset,
)
from speechbrain_ee.heads import HeadTargets, load_cluster_head

BLOCKS = Path(__file__).resolve().parents[2] / "hparams"


def make_targets(hparams, train, device):
    """What tells the clusters, and in words what it is."""
    kind, upstream = hparams["targets"], hparams["upstream"]
    if kind == "head":
        file = hparams["head_file"]
        head = load_cluster_head(file, hparams["num_clusters"])
        return HeadTargets(upstream, head), f"cluster head of {file}"
    if kind == "layer":
        states, layer = upstream, hparams["target_layer"]
        source = f"{hparams['upstream_name']}, layer {layer}"
    elif kind == "mfcc":
        states, layer, source = hparams["mfcc"], 0, "MFCCs, layer 0"
    else:
        raise ValueError(f"targets: {kind!r} is none of head, layer, mfcc.")
    if hparams["num_clusters"] is None:
        raise ValueError("num_clusters: say how many k-means is to find.")
    clusters = clusters_of_run(
        Path(hparams["save_folder"]) / "clusters.npz",
        source,
        find=lambda: cluster_speech(
            train,
            states,
            layer,
            hparams["num_clusters"],
            max_frames=hparams["cluster_frames"],
            seed=hparams["seed"],
            source=source,
            device=device,
        ),
    )
    if len(clusters) != hparams["num_clusters"]:
        raise ValueError(
            f"{hparams['save_folder']}/clusters.npz holds {len(clusters)} "
            f"clusters, and num_clusters is {hparams['num_clusters']}. Delete "
            "it, or choose another output_folder."
        )
    subsampling = labels_per_frame(states, upstream)
    return ClusterTargets(states, layer, clusters, subsampling), source


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

    upstream = hparams["upstream"]
    targets, source = make_targets(
        hparams, train, run_opts.get("device", "cpu")
    )
    # As many outputs as the targets have clusters.
    branches = hparams["branches"](
        exit_layers=hparams["exit_layers"]
        or list(range(1, upstream.num_layers + 1)),
        num_clusters=targets.num_clusters,
    )
    hparams["checkpointer"].add_recoverable("branches", branches)
    brain = hparams["brain"](
        targets=targets,
        modules={**hparams["modules"], "branches": branches},
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

    evaluate_branches(
        brain,
        train,
        valid,
        output_folder=hparams["output_folder"],
        facts={
            "targets": source,
            "utterances": len(train),
            "hours": hours_of(train),
            "splits": hparams["train_splits"],
            "extra_csvs": [Path(x).name for x in hparams["extra_csvs"]],
            "valid_split": hparams["valid_split"],
            "epochs": hparams["epoch_counter"].current,
        },
        loader_kwargs=hparams["valid_dataloader_opts"],
        most=hparams["measured_utterances"],
        seed=hparams["seed"],
    )
    leave_ddp_group()
