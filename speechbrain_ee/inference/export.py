"""A trained model as a folder of files, as the Hub has them.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from io import StringIO
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.tag import Tag
from speechbrain.processing.features import InputNormalization

from speechbrain_ee.encoders import LayerwiseEncoder, SpeechBrainEncoder
from speechbrain_ee.exits import check_selector, read_selector
from speechbrain_ee.files import is_yaml, replacing
from speechbrain_ee.heads import CTCHeads

YAML_NAME = "inference.yaml"

_HEADER = """\
A speech recogniser with early exits, written by SpeechBrain-EE after training.
These files belong together, and can be moved or put on the Hub together:
  {files}
How to use them:

  from speechbrain_ee.inference import EarlyExitASR

  asr = EarlyExitASR.from_hparams("FOLDER OR HUB NAME")
  print(asr.transcribe_file("speech.wav").text)
  asr.set_depth(exit_layer={layer})  # or selector=..., or max_layers=...

A YAML can run any code: load it only if you trust who wrote it. The .ckpt
files hold tensors, and are loaded so that nothing in them runs.

"""
_COMMENTS = {
    "encoder": "\nThe model as it was trained, without augmentation",
    "exits": "\n",
    "modules": "\n",
    "selector": "\nWho leaves where, unless the loaded model is told otherwise",
    "pretrained_path": "\nEarlyExitASR puts here where it loads the model from",
}
# Entries of a Hugging Face configuration that say where it came from, or that
# the encoder sets by itself.
_NO_ARCHITECTURE = {
    "_name_or_path",
    "apply_spec_augment",
    "architectures",
    "dtype",
    "layerdrop",
}
# What is loaded: a reference to it in the YAML, its file, and its loader.
_PARTS = {
    "encoder": ("<encoder>", "encoder.ckpt", "load_weights"),
    "exits": ("<exits>", "exits.ckpt", "load_weights"),
    "normalizer": (
        "<encoder[normalize]>",
        "normalizer.ckpt",
        "load_statistics",
    ),
    "lm": ("<exits[search][lm]>", "lm.ckpt", "load_weights"),
    "tokenizer": ("<tokenizer>", "tokenizer.model", "load_tokenizer"),
}


def write_inference(
    folder: str | Path,
    hparams_file: str | Path,
    encoder: LayerwiseEncoder,
    exits: CTCHeads,
    tokenizer_model: str | Path,
    selector: str | Mapping | None = None,
) -> Path:
    """Write a trained model for ``EarlyExitASR``.

    The files are ``encoder.ckpt``, ``exits.ckpt``, ``tokenizer.model``,
    ``normalizer.ckpt`` where the features are normalised with global
    statistics, ``lm.ckpt`` where transcripts are searched with a language
    model, and at last ``inference.yaml``. What stood there before is
    replaced once all are complete. With several processes, call it in one.

    Arguments
    ---------
    folder : str or Path
        Where to; made if need be.
    hparams_file : str or Path
        The run's ``hyperparams.yaml``. Its ``encoder``, ``exits`` and
        ``sample_rate`` are taken over.
    encoder : LayerwiseEncoder
        Trained, unwrapped.
    exits : CTCHeads
        Trained, unwrapped.
    tokenizer_model : str or Path
        The SentencePiece model.
    selector : str or Mapping, optional
        What ``get_selector`` takes, except an object; nobody leaves early
        unless given.

    Returns
    -------
    Path
        The ``inference.yaml``.

    Raises
    ------
    ValueError
        If the YAML lacks something, the selector does not fit the exits, or
        the normaliser has no statistics yet.

    Example
    -------
    >>> from hyperpyyaml import load_hyperpyyaml
    >>> folder = getfixture("tmp_path")
    >>> sentencepiece.SentencePieceTrainer.train(
    ...     sentence_iterator=iter(["ONE TWO"]),
    ...     model_prefix=str(folder / "char"),
    ...     model_type="char",
    ...     vocab_size=8,
    ...     minloglevel=2,
    ... )
    >>> hparams_file = folder / "hyperparams.yaml"
    >>> _ = hparams_file.write_text('''
    ... sample_rate: 16000
    ... encoder: !new:speechbrain_ee.encoders.huggingface.HuggingFaceEncoder
    ...     source: hubert
    ...     pretrained: False
    ...     config: {num_hidden_layers: 2, hidden_size: 48}
    ... exits: !new:speechbrain_ee.heads.CTCHeads
    ...     exit_layers: [1, 2]
    ...     input_size: 48
    ...     vocab_size: 8
    ... ''')
    >>> hparams = load_hyperpyyaml(hparams_file.read_text())
    >>> path = write_inference(
    ...     folder / "model",
    ...     hparams_file,
    ...     hparams["encoder"],
    ...     hparams["exits"],
    ...     folder / "char.model",
    ... )
    >>> sorted(file.name for file in path.parent.iterdir())
    ['encoder.ckpt', 'exits.ckpt', 'inference.yaml', 'tokenizer.model']
    """
    if isinstance(selector, str | Path) and is_yaml(selector):
        selector = read_selector(selector)  # it stays behind, if these move
    selector = "never" if selector is None else _plain(selector)
    check_selector(selector, exits.exit_layers)
    lm = getattr(getattr(exits, "search", None), "lm", None)
    nodes = _nodes_of_model(hparams_file, encoder, lm)
    parts = dict(_PARTS)
    weights = {"encoder": encoder.state_dict(), "exits": exits.state_dict()}
    statistics = statistics_of(encoder)
    if statistics is None:
        del parts["normalizer"]
    else:
        weights["normalizer"] = statistics
    if lm is None:
        del parts["lm"]
    else:
        weights["lm"] = lm.model.state_dict()
    write_model(
        folder,
        _inference_yaml(nodes, selector, parts, exits.exit_layers[0]),
        {parts[name][1]: content for name, content in weights.items()},
        {parts["tokenizer"][1]: tokenizer_model},
    )
    return Path(folder) / YAML_NAME


def write_model(
    folder: str | Path,
    text: str,
    weights: Mapping[str, Mapping],
    copies: Mapping[str, str | Path],
) -> None:
    """Write the files of a model, all or none.

    Arguments
    ---------
    folder : str or Path
        Where to; made if need be.
    text : str
        The ``inference.yaml``.
    weights : Mapping
        File name to what ``torch.save`` writes.
    copies : Mapping
        File name to a file that is copied.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        # Renamed last to first once all are complete: weights before the YAML.
        file = stack.enter_context(replacing(folder / YAML_NAME))
        file.write_text(text, encoding="utf-8")
        for name, path in copies.items():
            file = stack.enter_context(replacing(folder / name))
            shutil.copyfile(path, file)
        for name, content in weights.items():
            file = stack.enter_context(replacing(folder / name))
            torch.save(content, file)


def load_weights(module: torch.nn.Module, path: str | Path) -> None:
    """Load a ``state_dict``: every key must fit, and nothing in it is run.

    Arguments
    ---------
    module : torch.nn.Module
        Takes the weights.
    path : str or Path
        Written by ``torch.save``.

    Raises
    ------
    ValueError
        If the file holds anything but tensors, or those of another model.

    Example
    -------
    >>> path = getfixture("tmp_path") / "exits.ckpt"
    >>> torch.save(torch.nn.Linear(2, 3).state_dict(), path)
    >>> load_weights(torch.nn.Linear(2, 3), path)
    >>> load_weights(torch.nn.Linear(2, 4), path)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
      ...
    ValueError: ...exits.ckpt holds another model than inference.yaml: ...
    """
    weights = _read(path)
    try:
        module.load_state_dict(weights)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} holds another model than {YAML_NAME}: {error} Take both "
            "from the same export."
        ) from error


def load_statistics(normalizer: InputNormalization, path: str | Path) -> None:
    """Load what a feature normaliser has seen in training.

    Arguments
    ---------
    normalizer : InputNormalization
        Takes the statistics.
    path : str or Path
        As SpeechBrain saves them.

    Raises
    ------
    ValueError
        If the file holds something else.

    Example
    -------
    >>> path = getfixture("tmp_path") / "normalizer.ckpt"
    >>> mean, std = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 2.0])
    >>> torch.save({"count": 9, "glob_mean": mean, "glob_std": std}, path)
    >>> normalizer = InputNormalization(norm_type="global").eval()
    >>> load_statistics(normalizer, path)
    >>> normalizer(torch.tensor([[[5.0, 4.0]]]))
    tensor([[[2., 1.]]])
    """
    statistics = _read(path)
    names = ("count", "glob_mean", "glob_std")
    if not isinstance(statistics, dict) or not set(names) <= set(statistics):
        raise ValueError(
            f"{path} holds no statistics ({', '.join(names)}) of an "
            "InputNormalization: export the model again."
        )
    set_statistics(normalizer, statistics)


def set_statistics(normalizer: InputNormalization, statistics: dict) -> None:
    """Put what another normaliser has seen in place of what this one has.

    Arguments
    ---------
    normalizer : InputNormalization
        Takes the statistics.
    statistics : dict
        As from :func:`statistics_of`.
    """
    normalizer.count = statistics["count"]
    normalizer.glob_mean = statistics["glob_mean"]
    normalizer.glob_std = statistics["glob_std"]


def load_tokenizer(
    tokenizer: sentencepiece.SentencePieceProcessor, path: str | Path
) -> None:
    """Load a SentencePiece model.

    Arguments
    ---------
    tokenizer : SentencePieceProcessor
        Takes the model.
    path : str or Path
        The model.

    Raises
    ------
    ValueError
        If the file is something else.

    Example
    -------
    >>> path = getfixture("tmp_path") / "tokenizer.model"
    >>> _ = path.write_text("ONE TWO")
    >>> tokenizer = sentencepiece.SentencePieceProcessor()
    >>> load_tokenizer(tokenizer, path)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
      ...
    ValueError: ...tokenizer.model is no SentencePiece model: ...
    """
    content = Path(path).read_bytes()
    try:
        tokenizer.load_from_serialized_proto(content)
    except RuntimeError as error:
        raise ValueError(
            f"{path} is no SentencePiece model: export the model again."
        ) from error


def _read(path):
    """The tensors in a file, on the CPU."""
    try:
        # Said here, so that no environment variable says otherwise.
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever a broken or hostile file brings about
        raise ValueError(
            f"{path} was not loaded, and nothing in it was run: it is damaged, "
            "or holds something else than tensors. Copy or export the model "
            "again, and take models only from who you trust."
        ) from error


def make_yaml() -> YAML:
    """The reader and writer of ``inference.yaml``, comments included.

    Returns
    -------
    YAML
        That of ruamel.yaml, indented as recipes are.

    Example
    -------
    >>> text = StringIO()
    >>> make_yaml().dump(make_yaml().load("a: {b: 1}  # why"), text)
    >>> print(text.getvalue().strip())
    a: {b: 1}  # why
    """
    yaml = YAML()
    yaml.indent(mapping=4)
    return yaml


def _plain(value):
    """A selector's settings as YAML writes them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {_plain(key): _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return flow([_plain(one) for one in value])
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ValueError(
        f"selector: {value!r} cannot be written into {YAML_NAME}. Give a name "
        "or a mapping, such as {selector: threshold, score: entropy, "
        "threshold: 0.1}."
    )


def statistics_of(encoder: LayerwiseEncoder) -> dict | None:
    """What an encoder's normaliser has seen, if that matters.

    Arguments
    ---------
    encoder : LayerwiseEncoder
        Of any kind.

    Returns
    -------
    dict or None
        ``count``, ``glob_mean`` and ``glob_std``; None unless the features are
        normalised with global statistics.

    Raises
    ------
    ValueError
        If it has seen nothing yet.
    """
    own = encoder.normalize if isinstance(encoder, SpeechBrainEncoder) else None
    if not isinstance(own, InputNormalization) or own.norm_type != "global":
        return None
    if not own.count:
        raise ValueError(
            "normalize: its statistics are empty. Train, or load a checkpoint, "
            "before the model is written."
        )
    return {
        "count": own.count,
        "glob_mean": own.glob_mean,
        "glob_std": own.glob_std,
    }


def _nodes_of_model(hparams_file, encoder, lm) -> CommentedMap:
    """Sample rate, encoder and exits of a run's YAML."""
    with open(hparams_file, encoding="utf-8") as file:
        hparams = make_yaml().load(resolve_references(file))
    nodes, done = CommentedMap(), {}
    for key in ("sample_rate", "encoder", "exits"):
        if key not in hparams:
            raise ValueError(
                f"{hparams_file} has no {key}: give the hyperparams.yaml of a "
                "run of this project's recipes."
            )
        nodes[key] = _bare(hparams[key], done)
    for key in ("encoder", "exits"):
        if not isinstance(nodes[key], CommentedMap):
            raise ValueError(
                f"{hparams_file}: write the arguments of {key} by name."
            )
    # As a number: it may have been asked of the encoder.
    nodes["exits"]["input_size"] = encoder.output_size
    if encoder.gate is None:
        nodes["encoder"].pop("gate", None)
    if isinstance(encoder, SpeechBrainEncoder):
        nodes["encoder"].pop("augment", None)
    else:
        _describe_model(nodes["encoder"], encoder)
    search = nodes["exits"].get("search")
    if lm is not None:
        search["lm"] = make_yaml().load(lm.description)["lm_model"]
    elif search is not None:
        search.pop("lm", None)
    return nodes


def _bare(node, done: dict):
    """A copy without comments and anchors; what was shared stays shared."""
    if not isinstance(node, CommentedMap | CommentedSeq):
        return node
    if id(node) in done:
        return done[id(node)]
    done[id(node)] = copy = type(node)()
    if node.tag.value is not None:
        copy.yaml_set_ctag(node.tag)
    if node.fa.flow_style():
        copy.fa.set_flow_style()
    if isinstance(node, CommentedMap):
        copy.update({key: _bare(one, done) for key, one in node.items()})
    else:
        copy.extend(_bare(one, done) for one in node)
    return copy


def _describe_model(node: CommentedMap, encoder) -> None:
    """Say all of a Hugging Face model's architecture in the YAML itself.

    What the source said must not be asked for again: a local folder would not
    be there, and the model is to load without a network.
    """
    source, config = node["source"], encoder.model.config
    default = type(config)().to_dict()
    wanted = default.keys() - _NO_ARCHITECTURE
    changed = {
        key: flow(value) if isinstance(value, list) else value
        for key, value in config.to_dict().items()
        if key in wanted and value != default[key]
    }
    node["source"] = config.model_type
    node["pretrained"] = False
    node["normalize_wav"] = encoder.normalize_wav
    node["config"] = CommentedMap(
        {"num_hidden_layers": encoder.num_layers, **changed}
    )
    for key in ("apply_spec_augment", "num_layers", "save_path"):
        node.pop(key, None)
    if source != config.model_type and not os.path.isdir(source):
        node.yaml_add_eol_comment(f"was {source}", "source")


def _inference_yaml(tree: CommentedMap, selector, parts, layer: int) -> str:
    """The text of ``inference.yaml``, which begins with the model."""
    modules = {name: ref for name, (ref, _, _) in parts.items()}
    del modules["tokenizer"]
    # The normaliser too: moving the encoder leaves its statistics behind.
    tree["modules"] = _tagged("!ref", modules)
    tree["tokenizer"] = TaggedScalar(
        "", tag=Tag(suffix="!new:sentencepiece.SentencePieceProcessor")
    )
    tree["selector"] = selector
    tree["pretrained_path"] = "."
    tree["pretrainer"] = CommentedMap(
        loadables=_tagged(
            "!ref", {name: ref for name, (ref, _, _) in parts.items()}
        ),
        paths=_tagged(
            "!ref",
            {
                name: f"<pretrained_path>/{file}"
                for name, (_, file, _) in parts.items()
            },
        ),
        custom_hooks={
            name: TaggedScalar("", tag=Tag(suffix=f"!name:{__name__}.{loader}"))
            for name, (_, _, loader) in parts.items()
        },
    )
    tree["pretrainer"].yaml_set_ctag(
        Tag(suffix="!new:speechbrain.utils.parameter_transfer.Pretrainer")
    )
    files = ", ".join([YAML_NAME, *(file for _, file, _ in parts.values())])
    tree.yaml_set_start_comment(_HEADER.format(files=files, layer=layer))
    for key, comment in _COMMENTS.items():
        tree.yaml_set_comment_before_after_key(key, before=comment)
    text = StringIO()
    make_yaml().dump(tree, text)
    return text.getvalue()


def flow(values: Sequence) -> CommentedSeq:
    """A list that is written on one line.

    Arguments
    ---------
    values : sequence
        Of what YAML can write.

    Returns
    -------
    CommentedSeq
        The same values.
    """
    line = CommentedSeq(values)
    line.fa.set_flow_style()
    return line


def _tagged(tag: str, values: Mapping[str, str]) -> CommentedMap:
    """Each value under the same tag."""
    return CommentedMap(
        {
            key: TaggedScalar(value, tag=Tag(suffix=tag))
            for key, value in values.items()
        }
    )
