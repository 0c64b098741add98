"""Cut a trained model off behind one of its exits.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml.comments import CommentedMap

from speechbrain_ee.encoders import SpeechBrainEncoder
from speechbrain_ee.inference.asr import EarlyExitASR
from speechbrain_ee.inference.export import (
    YAML_NAME,
    check_selector,
    flow,
    make_yaml,
    write_model,
)


@dataclass(frozen=True)
class Truncation:
    """What cutting a model has saved.

    Arguments
    ---------
    exit_layer : int
        Where it ends now.
    parameters_before : int
        Of the source.
    parameters_after : int
        Of the truncated model.
    bytes_before : int
        Size of the source's files.
    bytes_after : int
        Size of the truncated model's files.

    Example
    -------
    >>> cut = Truncation(4, 1000, 600, 5000, 3400)
    >>> cut.parameters_after / cut.parameters_before
    0.6
    """

    exit_layer: int
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int


def truncate_model(
    source: str | Path, exit_layer: int, folder: str | Path
) -> Truncation:
    """Write a model that ends at an exit and says there what it said before.

    Encoder layers and heads behind the exit are gone from the files and from
    the configuration.

    Arguments
    ---------
    source : str or Path
        A folder that ``write_inference`` or this function has written.
    exit_layer : int
        The exit that becomes the last.
    folder : str or Path
        Where to; empty, or made.

    Returns
    -------
    Truncation
        Sizes before and after.

    Raises
    ------
    FileExistsError
        If there are files in the folder.
    FileNotFoundError
        If the source holds no model.
    ValueError
        If the model has no such exit, its selector does not fit the exits
        that are left, or a gate chooses its layers.

    Example
    -------
    >>> truncate_model("results/model", 6, "results/model_6")  # doctest: +SKIP
    Truncation(exit_layer=6, parameters_before=31132096, ...)
    """
    source, folder = Path(source), Path(folder)
    if not (source / YAML_NAME).is_file():
        raise FileNotFoundError(
            f"{source} has no {YAML_NAME}: give a folder that write_inference "
            "has written, such as the output_folder of a finished run."
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty: name another folder, or empty it."
        )
    asr = EarlyExitASR.from_hparams(source, run_opts={"device": "cpu"})
    if asr.mods.encoder.gate is not None:
        raise ValueError(
            f"{source}: its gate chooses among all layers, and knows no model "
            "with fewer. Set target_layers instead, when it is loaded."
        )
    exits = asr.mods.exits.exit_layers
    if exit_layer not in exits:
        raise ValueError(
            f"exit_layer: {source} has no exit after layer {exit_layer}; its "
            f"exits are {exits}."
        )
    before = _parameters(asr.mods)
    text = _truncated_yaml(source / YAML_NAME, exit_layer, asr)
    weights = _cut_weights(asr, exit_layer)

    # Made from the new YAML before anything is written: it is known to fit.
    paths = {name: Path(p) for name, p in asr.hparams.pretrainer.paths.items()}
    hparams = load_hyperpyyaml(text)
    modules = hparams["modules"]
    for name, values in weights.items():
        modules[name].load_state_dict(values)
    check_selector(hparams["selector"], modules["exits"].exit_layers)
    write_model(
        folder,
        text,
        {paths[name].name: values for name, values in weights.items()},
        {p.name: p for name, p in paths.items() if name not in weights},
    )
    names = [YAML_NAME, *(path.name for path in paths.values())]
    return Truncation(
        exit_layer=exit_layer,
        parameters_before=before,
        parameters_after=_parameters(torch.nn.ModuleDict(modules)),
        bytes_before=sum((source / name).stat().st_size for name in names),
        bytes_after=sum((folder / name).stat().st_size for name in names),
    )


def _parameters(modules: torch.nn.Module) -> int:
    return sum(one.numel() for one in modules.parameters())


def _cut_weights(asr: EarlyExitASR, exit_layer: int) -> dict[str, dict]:
    """Take what lies behind the exit out of the model; what is left."""
    encoder, heads = asr.mods.encoder, asr.mods.exits
    del encoder.layers[exit_layer:]
    for part in heads.per_exit:
        for key in list(part):
            if key != "tied" and int(key) > exit_layer:
                del part[key]
    return {"encoder": encoder.state_dict(), "exits": heads.state_dict()}


def _truncated_yaml(path: Path, exit_layer: int, asr: EarlyExitASR) -> str:
    """The source's YAML, ending at the exit."""
    yaml = make_yaml()
    tree = yaml.load(path.read_text(encoding="utf-8"))
    encoder, exits = tree["encoder"], tree["exits"]
    if isinstance(asr.mods.encoder, SpeechBrainEncoder):
        encoder["transformer"]["num_encoder_layers"] = exit_layer
    else:
        config = encoder.setdefault("config", CommentedMap())
        config["num_hidden_layers"] = exit_layer
    heads = asr.mods.exits
    kept = [k for k in heads.exit_layers if k <= exit_layer]
    exits["exit_layers"] = flow(kept)
    if exit_layer != heads.exit_layers[-1] and heads.exit_norm != "shared":
        exits["final_norm"] = False
    tree["selector"] = _cut_selector(tree["selector"], kept)
    text = StringIO()
    yaml.dump(tree, text)
    return text.getvalue()


def _cut_selector(selector, kept: list[int]):
    """The same selector without what it says of exits that are gone."""
    if not isinstance(selector, Mapping):
        return selector
    if selector.get("layer", 0) > kept[-1]:
        return "never"  # all leave at the last exit
    threshold = selector.get("threshold")
    if isinstance(threshold, Mapping):
        for layer in set(threshold) - set(kept):
            del threshold[layer]
    elif isinstance(threshold, Sequence):
        del threshold[len(kept) :]
    return selector
