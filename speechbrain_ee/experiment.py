"""The steps that the recipes' train.py have in common.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.dataio import load_data_csv, read_audio
from speechbrain.dataio.dataset import (
    DynamicItemDataset,
    FilteredSortedDynamicItemDataset,
)
from speechbrain.dataio.encoder import CategoricalEncoder, CTCTextEncoder
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.logger import get_logger

from speechbrain_ee.analysis.branches import write_branch_report
from speechbrain_ee.analysis.calibration import calibrated_thresholds
from speechbrain_ee.analysis.contributions import (
    layer_contributions,
    write_contributions,
)
from speechbrain_ee.analysis.report import write_report
from speechbrain_ee.analysis.results import (
    exit_results,
    write_results,
    write_results_report,
)
from speechbrain_ee.downstreams.labels import (
    make_class_encoder,
    make_label_encoder,
    split_labels,
)
from speechbrain_ee.encoders.base import SAMPLE_RATE
from speechbrain_ee.exits import ExitSelector
from speechbrain_ee.feature_cache import describe_upstream
from speechbrain_ee.files import replacing
from speechbrain_ee.gates import LayerGate
from speechbrain_ee.heads import save_branches
from speechbrain_ee.inference.export import write_inference
from speechbrain_ee.overrides import resolve_overrides

logger = get_logger(__name__)


def leave_ddp_group() -> None:
    """Part from the other processes, at the end of a run that went well.

    SpeechBrain's ``ddp_init_group`` has no counterpart. Without one, threads
    of gloo may still be there when Python ends, and a run that is finished is
    then aborted (SIGABRT, github.com/pytorch/pytorch/pull/179291). A run that
    fails leaves the group alone: others may be waiting in it, and torchrun ends
    them.

    Example
    -------
    >>> leave_ddp_group()  # one process: nothing to do
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def load_experiment(
    hparams_file: str | Path, overrides: str, blocks: str | Path
) -> dict:
    """Build what a YAML describes, and make the folder of its run.

    Arguments
    ---------
    hparams_file : str or Path
        The YAML.
    overrides : str
        Those of the command line, from ``speechbrain.parse_arguments``.
    blocks : str or Path
        The folder with the blocks that overrides may name.

    Returns
    -------
    dict
        The loaded YAML.

    Raises
    ------
    ValueError
        If an override names no key of the YAML, or no block.
    """
    overrides = resolve_overrides(hparams_file, overrides, blocks)
    with open(hparams_file, encoding="utf-8") as file:
        # Their keys are checked; a new selector is no mistake.
        hparams = load_hyperpyyaml(file, overrides, overrides_must_match=False)
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    return hparams


def read_dataset(
    path: str | Path,
    data_folder: str | Path,
    items: Sequence = (),
    keys: Sequence[str] = (),
    max_seconds: float | None = None,
) -> DynamicItemDataset:
    """A prepared CSV with its audio, in its own order.

    It has the columns ``ID``, ``duration`` (s), ``wav`` and, where an utterance
    is a piece of a recording, ``start`` and ``stop`` (samples).

    Arguments
    ---------
    path : str or Path
        The CSV.
    data_folder : str or Path
        What ``$data_root`` stands for in it.
    items : sequence
        Dynamic items beside ``sig``, as ``DynamicItemDataset`` takes them.
    keys : sequence of str
        Items to give beside ``id`` and ``sig``.
    max_seconds : float, optional
        Give a piece of longer utterances, which is drawn anew each time.

    Returns
    -------
    DynamicItemDataset
    """
    most = None if max_seconds is None else round(max_seconds * SAMPLE_RATE)

    def cut(start, stop):
        """Ends of a piece that is not too long."""
        if most is not None and stop - start > most:
            start += int(torch.randint(stop - start - most + 1, ()))
            stop = start + most
        return {"start": start, "stop": stop}

    @sb.utils.data_pipeline.takes("wav", "duration")
    @sb.utils.data_pipeline.provides("sig")
    def read_file(wav, duration):
        """A whole file, or a piece of it."""
        samples = round(float(duration) * SAMPLE_RATE)
        if most is None or samples <= most:
            return read_audio(wav)
        return read_audio({"file": wav, **cut(0, samples)})

    @sb.utils.data_pipeline.takes("wav", "start", "stop")
    @sb.utils.data_pipeline.provides("sig")
    def read_piece(wav, start, stop):
        """A piece of a recording."""
        return read_audio({"file": wav, **cut(int(start), int(stop))})

    dataset = DynamicItemDataset.from_csv(
        csv_path=path,
        replacements={"data_root": data_folder},
        dynamic_items=list(items),
    )
    columns = next(iter(dataset.data.values()), {})
    pieces = {"start", "stop"} <= set(columns)
    dataset.add_dynamic_item(read_piece if pieces else read_file)
    dataset.set_output_keys(["id", "sig", *keys])
    return dataset


def make_datasets(
    tokenizer,
    data_folder: str | Path,
    train: str | Path,
    valid: str | Path,
    tests: Mapping[str, str | Path],
) -> tuple[DynamicItemDataset, DynamicItemDataset, dict]:
    """Datasets of prepared CSVs, for training, model selection and test.

    The CSVs have the columns ``ID``, ``duration`` (s), ``wav``, ``wrd`` and,
    where an utterance is a piece of a recording, ``start`` and ``stop``
    (samples).

    Arguments
    ---------
    tokenizer : SentencePiece
        SpeechBrain's; turns words into labels.
    data_folder : str or Path
        What ``$data_root`` stands for in the CSVs.
    train : str or Path
        The CSV to train on.
    valid : str or Path
        The CSV that chooses checkpoints.
    tests : mapping
        Name of a set to its CSV.

    Returns
    -------
    train : DynamicItemDataset
        In the order of the CSV, with ``id``, ``sig``, ``tokens``, ``wrd``.
    valid : DynamicItemDataset
        Short utterances first.
    tests : dict
        Name to DynamicItemDataset, short utterances first.
    """

    @sb.utils.data_pipeline.takes("wrd")
    @sb.utils.data_pipeline.provides("tokens")
    def encode(wrd):
        """Labels, without sentence marks."""
        return torch.LongTensor(tokenizer.sp.encode_as_ids(wrd))

    def load(path):
        """A CSV, in its own order."""
        return read_dataset(path, data_folder, [encode], ["tokens", "wrd"])

    return (
        load(train),
        _short_first(load(valid)),
        {name: _short_first(load(path)) for name, path in tests.items()},
    )


def make_label_datasets(
    label_file: str | Path,
    data_folder: str | Path,
    train: str | Path,
    valid: str | Path,
    tests: Mapping[str, str | Path],
) -> tuple[CTCTextEncoder, DynamicItemDataset, DynamicItemDataset, dict]:
    """Datasets of prepared CSVs whose targets are characters or phones.

    The CSVs have the columns ``ID``, ``duration`` (s), ``wav``, ``wrd`` and
    ``unit``, see ``speechbrain_ee.downstreams.labels``.

    Arguments
    ---------
    label_file : str or Path
        Where the labels of the training data are numbered.
    data_folder : str or Path
        What ``$data_root`` stands for in the CSVs.
    train : str or Path
        The CSV to train on.
    valid : str or Path
        The CSV that chooses checkpoints.
    tests : mapping
        Name of a set to its CSV.

    Returns
    -------
    label_encoder : CTCTextEncoder
        Of the labels of the training data.
    train : DynamicItemDataset
        In the order of the CSV, with ``id``, ``sig``, ``tokens``, ``wrd`` and
        ``unit``.
    valid : DynamicItemDataset
        Short utterances first.
    tests : dict
        Name to DynamicItemDataset, short utterances first.
    """

    @sb.utils.data_pipeline.takes("wrd", "unit")
    @sb.utils.data_pipeline.provides("tokens")
    def encode(wrd, unit):
        """Labels as numbers."""
        return label_encoder.encode_sequence_torch(split_labels(wrd, unit))

    def load(path):
        """A CSV, in its own order."""
        keys = ["tokens", "wrd", "unit"]
        return read_dataset(path, data_folder, [encode], keys)

    train = load(train)
    label_encoder = make_label_encoder(
        label_file,
        (split_labels(x["wrd"], x["unit"]) for x in train.data.values()),
    )
    return (
        label_encoder,
        train,
        _short_first(load(valid)),
        {name: _short_first(load(path)) for name, path in tests.items()},
    )


def make_utterance_datasets(
    save_folder: str | Path,
    label_columns: Sequence[str],
    data_folder: str | Path,
    train: str | Path,
    valid: str | Path,
    tests: Mapping[str, str | Path],
    unseen_labels: bool = False,
    max_seconds: float | None = None,
) -> tuple[
    dict[str, CategoricalEncoder], DynamicItemDataset, DynamicItemDataset, dict
]:
    """Datasets of prepared CSVs whose utterances have a label or several.

    The CSVs have the columns ``ID``, ``duration`` (s), ``wav`` and those of
    the labels.

    Arguments
    ---------
    save_folder : str or Path
        Gets ``labels_<column>.txt``, where the classes of the training data
        are numbered.
    label_columns : sequence of str
        The columns of the labels, one for each slot.
    data_folder : str or Path
        What ``$data_root`` stands for in the CSVs.
    train : str or Path
        The CSV to train on.
    valid : str or Path
        The CSV that chooses checkpoints.
    tests : mapping
        Name of a set to its CSV.
    unseen_labels : bool
        Whether the test sets are read without their labels.
    max_seconds : float, optional
        Train on pieces of longer utterances.

    Returns
    -------
    label_encoders : dict
        A CategoricalEncoder for each column.
    train : DynamicItemDataset
        In the order of the CSV, with ``id``, ``sig`` and ``labels``.
    valid : DynamicItemDataset
        Short utterances first.
    tests : dict
        Name to DynamicItemDataset, short utterances first.
    """

    @sb.utils.data_pipeline.takes(*label_columns)
    @sb.utils.data_pipeline.provides("labels")
    def encode(*labels):
        """Numbers of the classes, one for each slot."""
        pairs = zip(label_encoders.values(), labels, strict=True)
        return torch.tensor([one.encode_label(label) for one, label in pairs])

    labelled = ([encode], ["labels"])

    def load(path, labels=labelled):
        """A CSV, short utterances first."""
        return _short_first(read_dataset(path, data_folder, *labels))

    train = read_dataset(train, data_folder, *labelled, max_seconds)
    label_encoders = {
        column: make_class_encoder(
            Path(save_folder) / f"labels_{column}.txt",
            (row[column] for row in train.data.values()),
        )
        for column in label_columns
    }
    return (
        label_encoders,
        train,
        load(valid),
        {
            n: load(p, () if unseen_labels else labelled)
            for n, p in tests.items()
        },
    )


def make_source_datasets(
    source_columns: Sequence[str],
    data_folder: str | Path,
    train: str | Path,
    valid: str | Path,
    tests: Mapping[str, str | Path],
) -> tuple[DynamicItemDataset, DynamicItemDataset, dict]:
    """Datasets of prepared CSVs of speech in noise, or of several at once.

    The CSVs have the columns ``ID``, ``duration`` (s), ``wav`` and those of
    the sources, which name files of the same length.

    Arguments
    ---------
    source_columns : sequence of str
        The columns of the sources.
    data_folder : str or Path
        What ``$data_root`` stands for in the CSVs.
    train : str or Path
        The CSV to train on.
    valid : str or Path
        The CSV that chooses checkpoints.
    tests : mapping
        Name of a set to its CSV.

    Returns
    -------
    train : DynamicItemDataset
        In the order of the CSV, with ``id``, ``sig``, ``mixture`` (the same)
        and ``sources`` of shape (samples, sources).
    valid : DynamicItemDataset
        Short utterances first.
    tests : dict
        Name to DynamicItemDataset, short utterances first.
    """

    @sb.utils.data_pipeline.takes("sig")
    @sb.utils.data_pipeline.provides("mixture")
    def listen(sig):
        """The waveform that the upstream hears, once more."""
        return sig

    @sb.utils.data_pipeline.takes(*source_columns)
    @sb.utils.data_pipeline.provides("sources")
    def read(*files):
        """The sources beside each other."""
        return torch.stack([read_audio(file) for file in files], dim=1)

    def load(path):
        """A CSV, in its own order."""
        keys = ["mixture", "sources"]
        return read_dataset(path, data_folder, [listen, read], keys)

    return (
        load(train),
        _short_first(load(valid)),
        {name: _short_first(load(path)) for name, path in tests.items()},
    )


def make_speech_dataset(
    csv_files: Sequence[str | Path],
    data_folder: str | Path,
    min_seconds: float = 0.0,
    max_seconds: float | None = None,
    random_crops: bool = False,
    sample_rate: int = SAMPLE_RATE,
) -> DynamicItemDataset:
    """Speech without labels, from any number of CSVs.

    The CSVs have the columns ``ID``, ``duration`` (s), ``wav`` and, where an
    utterance is a piece of a recording, ``start`` and ``stop`` (samples);
    others are passed over.

    Arguments
    ---------
    csv_files : sequence of str or Path
        The CSVs.
    data_folder : str or Path
        What ``$data_root`` stands for in them.
    min_seconds : float
        Shorter utterances are left out.
    max_seconds : float, optional
        Longer utterances are cut to it (default: none is).
    random_crops : bool
        Whether each time another piece is cut out, instead of the first.
    sample_rate : int
        Of the audio.

    Returns
    -------
    DynamicItemDataset
        With ``id`` and ``sig`` and, on request, the ``duration`` of ``sig``.

    Raises
    ------
    ValueError
        If an ID stands in two CSVs, a column is missing, or nothing is left.
    """
    data = {}
    for path in csv_files:
        rows = load_data_csv(path, {"data_root": data_folder})
        twice = sorted(data.keys() & rows.keys())
        if twice:
            raise ValueError(
                f"{path}: the ID {twice[0]} and {len(twice) - 1} more stand in "
                "another CSV too. Put a prefix before the IDs of one."
            )
        for name, row in rows.items():
            if not {"duration", "wav"} <= row.keys():
                raise ValueError(
                    f"{path}: the columns ID, duration and wav are needed; "
                    f"there are ID, {', '.join(row)}."
                )
            if row["duration"] < min_seconds:
                continue
            start, whole = int(row.get("start") or 0), row["duration"]
            heard = min(whole, max_seconds or whole)
            extent = whole if random_crops else heard
            data[name] = {
                "wav": row["wav"],
                "start": start,
                "stop": start + round(extent * sample_rate),
                "duration": heard,
            }
    if not data:
        raise ValueError(
            f"No utterance in {', '.join(map(str, csv_files))} is as long as "
            f"{min_seconds} s."
        )

    @sb.utils.data_pipeline.takes("wav", "start", "stop", "duration")
    @sb.utils.data_pipeline.provides("sig")
    def read(wav, start, stop, duration):
        """The utterance, or a piece of it."""
        samples = round(duration * sample_rate)
        start += int(torch.randint(stop - start - samples + 1, ()))
        return read_audio(
            {"file": wav, "start": start, "stop": start + samples}
        )

    return DynamicItemDataset(data, [read], ["id", "sig"])


def hours_of(dataset: DynamicItemDataset) -> float:
    """How much speech there is.

    Arguments
    ---------
    dataset : DynamicItemDataset
        As of ``make_speech_dataset``.

    Returns
    -------
    float
        In hours, to some seconds.
    """
    samples = sum(x["stop"] - x["start"] for x in dataset.data.values())
    return round(samples / SAMPLE_RATE / 3600, 3)


def evaluate_branches(
    brain,
    train: DynamicItemDataset,
    valid: DynamicItemDataset,
    output_folder: str | Path,
    facts: Mapping,
    loader_kwargs: Mapping,
    most: int | None = None,
    seed: int = 0,
) -> Path:
    """Measure trained branches, keep them, and write their report.

    Writes the folder ``branches`` (see ``heads.branches``), whose
    ``branches.json`` has under ``train`` and ``valid`` what was measured, and
    the files of ``analysis.branches.write_branch_report``.

    Arguments
    ---------
    brain : BranchBrain
        Trained, with the best checkpoint loaded.
    train : DynamicItemDataset
        It was trained on.
    valid : DynamicItemDataset
        That chose the checkpoint.
    output_folder : str or Path
        Of the run. A run with ``--debug`` writes into its folder ``debug``.
    facts : mapping
        Of the training, for ``branches.json``.
    loader_kwargs : mapping
        Of the data loaders.
    most : int, optional
        How many utterances of ``train`` are measured (default: all).
    seed : int
        Of their choice.

    Returns
    -------
    Path
        The folder of the branches.
    """
    chance = torch.Generator().manual_seed(seed)
    drawn = sorted(torch.randperm(len(train), generator=chance)[:most].tolist())
    sets = {
        "train": FilteredSortedDynamicItemDataset(
            train, [train.data_ids[row] for row in drawn]
        ),
        "valid": valid,
    }
    readings = {
        name: brain.measure(dataset, loader_kwargs, name)
        for name, dataset in sets.items()
    }
    output_folder = _folder_of(brain, Path(output_folder))
    folder = output_folder / "branches"
    facts = {
        "upstream": describe_upstream(brain.upstream, brain.device),
        "steps": brain.optimizer_step,
        **facts,
        **{name: one.facts() for name, one in readings.items()},
    }
    run_on_main(save_branches, [folder, brain.branches, facts])
    about = (
        f"Targets: {facts['targets']} ({brain.branches.num_clusters} "
        "clusters). Entropies in nats: mean over the real frames of an "
        "utterance, then over utterances; nothing is masked."
    )
    run_on_main(_report_branches, [output_folder, readings, about])
    return folder


def _report_branches(output_folder, readings, about):
    """Write the report, and say aloud what it warns of."""
    for warning in write_branch_report(output_folder, readings, about):
        logger.warning(warning)


def evaluate_and_export(
    brain,
    valid: tuple[str, DynamicItemDataset],
    tests: Mapping[str, DynamicItemDataset],
    output_folder: str | Path,
    scores: Sequence,
    selectors: Mapping[str, ExitSelector],
    calibrate: Mapping,
    groups: Mapping[str, str],
    loader_kwargs: Mapping,
    gates: Mapping[str, LayerGate] | None = None,
    target_layers: Sequence[float] = (),
) -> Path:
    """Evaluate a trained model, and write its reports and ``inference.yaml``.

    Arguments
    ---------
    brain : EarlyExitCTC
        Trained.
    valid : tuple
        Name and dataset of the set that thresholds are chosen on.
    tests : mapping
        Name to dataset.
    output_folder : str or Path
        Of the run. A run with ``--debug`` writes into its folder ``debug``.
    scores : sequence
        What is traced at every exit.
    selectors : mapping
        Who leaves where: each runs the loop on the test sets.
    calibrate : mapping
        Arguments of ``calibrated_thresholds``; the thresholds that it chooses
        run the loop too.
    groups : mapping
        Grouping columns of the traces, by the column of the CSV.
    loader_kwargs : mapping
        Of the data loaders.
    gates : mapping, optional
        Which layers run: each runs the loop on the test sets, beside the
        encoder's own gate.
    target_layers : sequence of float
        How many layers gates are asked for that serve any number.

    Returns
    -------
    Path
        The folder that all was written into.
    """
    output_folder = Path(output_folder)
    folder = _folder_of(brain, output_folder)
    settings = {
        "folder": folder,
        "scores": scores,
        "groups": groups,
        "loader_kwargs": loader_kwargs,
    }
    name, dataset = valid
    brain.fit_gates(dataset, folder, gates, loader_kwargs)
    traces = brain.evaluate_exits(dataset, name, **settings)
    chosen = calibrated_thresholds(traces, scores, **calibrate)
    selectors = {**selectors, **chosen}
    for name, dataset in tests.items():
        brain.evaluate_exits(
            dataset,
            name,
            selectors=selectors,
            gates=gates,
            target_layers=target_layers,
            **settings,
        )
    run_on_main(
        write_inference,
        kwargs={
            "folder": folder,
            "hparams_file": output_folder / "hyperparams.yaml",
            "encoder": brain.encoder,
            "exits": brain.exits,
            "tokenizer_model": brain.tokenizer.prefix_model_file + ".model",
            "selector": next(iter(chosen.values()), None),
        },
    )
    run_on_main(write_report, [folder])
    return folder


def fit_downstream_parts(
    brain,
    train: DynamicItemDataset,
    output_folder: str | Path,
    loader_kwargs: Mapping,
) -> None:
    """What is found on the training set before a task model is trained.

    Components of the interface, and the statistics of exits, which are written
    to ``exits.json`` too; each where there is such a thing.

    Arguments
    ---------
    brain : DownstreamBrain
        Not trained yet.
    train : DynamicItemDataset
        To train on.
    output_folder : str or Path
        Of the run. A run with ``--debug`` writes into its folder ``debug``.
    loader_kwargs : mapping
        Of the data loader.
    """
    folder = _folder_of(brain, Path(output_folder))
    brain.fit_interface(train, loader_kwargs)
    brain.fit_exits(train, folder / "exits.json", loader_kwargs)


def evaluate_downstream(
    brain,
    valid: tuple[str, DynamicItemDataset],
    tests: Mapping[str, DynamicItemDataset],
    output_folder: str | Path,
    groups: Mapping[str, str],
    loader_kwargs: Mapping,
    gates: Mapping[str, LayerGate] | None = None,
    target_layers: Sequence[float] = (),
) -> Path:
    """Evaluate a task model behind an upstream, and write its report.

    Writes ``traces_<set>.csv`` and ``results_<set>.csv`` of the test sets,
    ``layers.csv`` and ``layers.png`` with what each layer of the upstream
    contributes (see ``analysis.contributions``; where no weights are learnt, on
    the validation set), and ``report.md``. Where there are branches,
    ``branch_scores_<set>.csv`` has what each of them says of each utterance,
    which takes one more pass at full depth. Where there are gates,
    ``gates_<set>.csv`` and ``curve_<set>.csv`` have what each of them does at
    each target.

    Arguments
    ---------
    brain : DownstreamBrain
        Trained.
    valid : tuple
        Name and dataset of the set that layers are judged on, and masks found.
    tests : mapping
        Name to dataset.
    output_folder : str or Path
        Of the run. A run with ``--debug`` writes into its folder ``debug``.
    groups : mapping
        Grouping columns of the traces, by the item that holds them.
    loader_kwargs : mapping
        Of the data loaders.
    gates : mapping, optional
        Which layers run: the test sets are judged under each, beside the
        upstream's own gate.
    target_layers : sequence of float
        How many layers gates are asked for that serve any number.

    Returns
    -------
    Path
        The folder that all was written into.
    """
    folder = _folder_of(brain, Path(output_folder))
    settings = (folder, loader_kwargs, groups)
    brain.fit_gates(valid[1], folder, gates, loader_kwargs)
    for name, dataset in tests.items():
        traces = brain.evaluate_set(dataset, name, *settings)
        results = [brain.results(traces)]
        if brain.exits is not None:
            left = [one for _, one in sorted(brain.departures.items())]
            results.append(exit_results([one["exit_layer"] for one in left]))
        brain.evaluate_gates(dataset, name, *settings, gates, target_layers)
        table = pd.concat(results, ignore_index=True)
        run_on_main(write_results, [folder, name, table])
        if brain.branches is not None:
            scores = brain.branch_scores(dataset, loader_kwargs, name)
            if if_main_process():
                path = folder / f"branch_scores_{name}.csv"
                with replacing(path) as file:
                    scores.to_csv(file, index=False, encoding="utf-8")
    name, dataset = valid
    layers = layer_contributions(
        brain.unwrapped["interface"],
        partial(brain.error_rate, dataset, loader_kwargs),
    )
    run_on_main(write_contributions, [folder, layers, brain.metric])
    run_on_main(write_results_report, [folder, name])
    return folder


def _short_first(dataset: DynamicItemDataset):
    """The same in order of duration."""
    return dataset.filtered_sorted(sort_key="duration")


def _folder_of(brain, output_folder: Path) -> Path:
    """Where a run writes: with ``--debug``, not over that of a finished run."""
    if not brain.debug or brain.debug_persistently:
        return output_folder
    folder = output_folder / "debug"
    folder.mkdir(exist_ok=True)
    return folder
