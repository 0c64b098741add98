"""Runs: what their folders say of the model that was trained.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

# What a class, a word of a hub name, or a setting calls the model.
_ENCODERS = {
    "conformer": "Conformer",
    "branchformer": "Branchformer",
    "transformer": "Transformer",
}
_BACKBONES = {"wav2vec2": "Wav2Vec2", "hubert": "HuBERT", "wavlm": "WavLM"}
_BRAINS = {"EarlyExitCTC": "CTC", "EarlyExitAED": "AED"}

# What hub names are called in tables.
_UPSTREAMS = {
    "facebook/hubert-base-ls960": "HuBERT-Base",
    "facebook/hubert-large-ll60k": "HuBERT-Large",
    "microsoft/wavlm-base": "WavLM-Base",
    "microsoft/wavlm-base-plus": "WavLM-Base+",
    "microsoft/wavlm-large": "WavLM-Large",
    "facebook/wav2vec2-large-xlsr-53": "XLSR-53",
    "facebook/wav2vec2-xls-r-300m": "XLS-R-300M",
    "utter-project/mHuBERT-147": "mHuBERT-147",
}
# What interfaces are called in tables, and the options that their blocks have.
_INTERFACES = {
    "WeightedSum": ("WS", {}),
    "PerExitWeightedSum": ("WS per exit", {}),
    "HierarchicalConv": ("HConv", {"kernel_size": 5, "stride": 3}),
    "CLSPooling": ("CLS", {"num_layers": 1, "nhead": 8}),
    "GroupedWeightedSum": ("Grouped WS", {"num_groups": 2}),
    "ConcatProjection": ("Concat", {}),
    "PCAConcat": ("PCA", {"samples": 10000}),
    "SingleLayer": ("Last layer", {"layer": -1}),
    "AttentionWeightedSum": ("Attention", {}),
}
# What exits are called in tables.
_EXITS = {"BranchExits": "DAISY", "FixedLayer": "fixed"}
# The downstream of ML-SUPERB.
_DOWNSTREAM = {"num_layers": 2, "d_model": 256, "d_ffn": 1024}

# Settings that make two runs the same model, trained in the same way.
_SETTINGS = (
    "num_layers",
    "d_model",
    "source",
    "features",
    "token_type",
    "output_neurons",
    "tied",
    "tied_decoder",
    "ctc_weight",
    "augment_prob",
    "train_splits",
    "number_of_epochs",
    "lr",
    "lr_encoder",
    "ctc_source",
)


@dataclass
class Run:
    """What the folder of a run says of it.

    Arguments
    ---------
    folder : Path
        Of the run.
    model : str
        Such as "Conformer-CTC".
    seed : str
        As written; empty if unknown.
    settings : dict
        What is told of size, data and training, as text.
    """

    folder: Path
    model: str
    seed: str = ""
    settings: dict[str, str] = field(default_factory=dict)


def describe_run(folder: str | Path, model: str | None = None) -> Run:
    """Tell the model, seed and settings of a run from ``hyperparams.yaml``.

    The model is named after the encoder (``encoder_module`` of SpeechBrain's,
    the hub name of Hugging Face's) and the class of the brain. Without that
    file the seed is the number at the end of the folder's name.

    Arguments
    ---------
    folder : str or Path
        Of the run.
    model : str, optional
        Name of the model, where the folder need not tell.

    Returns
    -------
    Run

    Raises
    ------
    ValueError
        If the file is no YAML, or does not tell the model.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "hyperparams.yaml").write_text('''
    ... seed: 7
    ... encoder: !new:speechbrain_ee.encoders.HuggingFaceEncoder
    ...     source: microsoft/wavlm-base-plus
    ... brain: !name:speechbrain_ee.brains.EarlyExitCTC
    ... ''')
    >>> run = describe_run(folder)
    >>> run.model, run.seed
    ('WavLM-CTC', '7')
    """
    folder = Path(folder)
    path = folder / "hyperparams.yaml"
    if not path.is_file() and model is not None:
        ending = re.search(r"\d+$", folder.resolve().name)
        return Run(folder, model, ending[0] if ending else "")
    tree = _read_settings(path)
    encoder = tree.get("encoder")
    settings = {"source": encoder.get("source")} if _is_map(encoder) else {}
    settings |= {key: tree[key] for key in _SETTINGS if key in tree}
    settings["objective"] = _objective(tree.get("objective"))
    return Run(
        folder,
        model or _name_model(tree, path),
        str(tree.get("seed", "")),
        {k: _text(v) for k, v in settings.items() if v is not None},
    )


@dataclass
class DownstreamRun:
    """What the folder of a run behind a frozen upstream says of it.

    Arguments
    ---------
    upstream : str
        Such as "HuBERT-Base"; the name of its folder for a local one.
    interface : str
        Such as "HConv", with options that differ from those of its block, exits
        and a downstream that differ from the benchmark's.
    task : str
        As in the YAML.
    duration : str
        Of the training data, such as "1h"; empty if there is no such choice.
    setting : str
        The language, of monolingual runs.
    seed : str
        As written.
    """

    upstream: str
    interface: str
    task: str
    duration: str = ""
    setting: str = ""
    seed: str = ""


def describe_downstream(folder: str | Path) -> DownstreamRun:
    """Tell upstream, interface and task of a run from ``hyperparams.yaml``.

    Arguments
    ---------
    folder : str or Path
        Of the run.

    Returns
    -------
    DownstreamRun

    Raises
    ------
    ValueError
        If the file is missing, is no YAML, or does not tell one of these.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "hyperparams.yaml").write_text('''
    ... task: lid
    ... duration: 1h
    ... upstream: !new:speechbrain_ee.encoders.HuggingFaceEncoder
    ...     source: facebook/wav2vec2-large-xlsr-53
    ... interface: !name:speechbrain_ee.interfaces.GroupedWeightedSum
    ...     num_groups: 3
    ... d_ffn: 5337
    ... ''')
    >>> run = describe_downstream(folder)
    >>> run.upstream, run.interface, run.task
    ('XLSR-53', 'Grouped WS, num_groups 3, d_ffn 5337', 'lid')
    """
    path = Path(folder) / "hyperparams.yaml"
    tree = _read_settings(path)
    missing = [x for x in ("upstream", "interface", "task") if x not in tree]
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(missing)}: it is not of a run behind a "
            "frozen upstream."
        )
    upstream, interface = tree["upstream"], tree["interface"]
    if _class(upstream) == "FilterbankEncoder":
        name = "FBANK"
    elif _is_map(upstream) and "source" in upstream:
        source = str(upstream["source"]).rstrip("/")
        name = _UPSTREAMS.get(source, source.rpartition("/")[2])
    else:
        raise ValueError(f"{path}: the upstream does not tell its source")
    design = _class(interface)
    if design not in _INTERFACES:
        raise ValueError(
            f"{path}: the interface is {design or 'not named'}, none of "
            f"{', '.join(_INTERFACES)}"
        )
    label, usual = _INTERFACES[design]
    options = dict(interface) if _is_map(interface) else {}
    if options.pop("normalize", False):
        label = f"Normalized {label}"
    told = [f"{k} {v}" for k, v in options.items() if usual.get(k) != v]
    told += _exits(tree.get("exits"))
    told += [
        f"{key} {tree[key]}"
        for key, value in _DOWNSTREAM.items()
        if tree.get(key, value) != value
    ]
    monolingual = tree["task"] == "monolingual"
    return DownstreamRun(
        name,
        ", ".join([label, *told]),
        str(tree["task"]),
        str(tree.get("duration", "")),
        str(tree.get("language", "")) if monolingual else "",
        str(tree.get("seed", "")),
    )


def _read_settings(path: Path) -> Mapping:
    if not path.is_file():
        raise ValueError(f"there is no {path}")
    try:
        tree = YAML().load(path)
    except YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(tree, Mapping):
        raise ValueError(f"{path} holds no keys")
    return tree


def _name_model(tree, path) -> str:
    encoder, brain = tree.get("encoder"), _class(tree.get("brain"))
    name = None
    if _is_map(encoder):
        if "source" in encoder:
            source = str(encoder["source"]).lower()
            name = _first(_BACKBONES, source)
            if name and encoder.get("pretrained") is False:
                name += " (from scratch)"
        elif _is_map(encoder.get("transformer")):
            module = encoder["transformer"].get("encoder_module", "transformer")
            name = _ENCODERS.get(module)
    if name is None:
        raise ValueError(f"the encoder of {path} is not one of those known")
    if brain not in _BRAINS:
        raise ValueError(
            f"the brain of {path} is {brain or 'not named'}, none of "
            f"{', '.join(_BRAINS)}"
        )
    head, _, rest = name.partition(" ")
    return f"{head}-{_BRAINS[brain]} {rest}".strip()


def _first(names, text):
    return next((name for word, name in names.items() if word in text), None)


def _is_map(node) -> bool:
    return isinstance(node, Mapping)


def _class(node) -> str:
    """The last part of what a tag such as !new: names; of scalars too."""
    tag = getattr(node, "tag", None)
    return (getattr(tag, "value", None) or "").rpartition(".")[2]


def _exits(node) -> list[str]:
    """Where utterances leave an upstream, if not at its last layer."""
    if _class(node) == "NeverLeave" or node is None or node == {}:
        return []
    options = dict(node) if _is_map(node) else {"": node}
    name = _class(node) or str(options.pop("selector", "BranchExits"))
    words = [_EXITS.get(name, name)]
    usual = {"score": "entropy", "of": "all"}
    told = {k: v for k, v in options.items() if usual.get(k) != v}
    return [" ".join([*words, *(f"{k} {v}".strip() for k, v in told.items())])]


def _objective(node) -> str | None:
    if not _is_map(node):
        return None
    return " ".join([_class(node), *map(_class, node.values())]).strip()


def _text(value) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
