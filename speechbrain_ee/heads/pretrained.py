"""Exits that start from a Hugging Face model fine-tuned with plain CTC.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from speechbrain.utils.logger import get_logger
from transformers import AutoModelForCTC
from transformers.utils import cached_file

from speechbrain_ee.encoders.huggingface import (
    HuggingFaceEncoder,
    preprocessor_normalizes,
)
from speechbrain_ee.heads.ctc import CTCHeads

logger = get_logger(__name__)

WORD_BOUNDARY = "\u2581"  # as SentencePiece writes it
UNKNOWN = "<unk>"
# Ours, and what others write for it.
_SAME_LABELS = (
    (WORD_BOUNDARY, "|"),
    (WORD_BOUNDARY, " "),
    (UNKNOWN, "[UNK]"),
)

# What makes the same weights compute something else, or not fit.
_ARCHITECTURE = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "do_stable_layer_norm",
    "conv_dim",
    "conv_kernel",
    "conv_stride",
    "conv_bias",
    "feat_extract_norm",
    "feat_extract_activation",
    "feat_proj_layer_norm",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
    "conv_pos_batch_norm",
    "num_buckets",
    "max_bucket_distance",
    "add_adapter",
    "adapter_attn_dim",
)


def start_from_ctc(
    encoder: HuggingFaceEncoder,
    exits: CTCHeads,
    source: str,
    labels: Sequence[str] | None = None,
    save_path: str | None = None,
) -> None:
    """Load a plain CTC model: its one head becomes the start of every exit.

    The last exit then says what the plain model says. An encoder of fewer
    layers takes the first ones.

    Arguments
    ---------
    encoder : HuggingFaceEncoder
        Takes the weights of the backbone.
    exits : CTCHeads
        Take those of the head, tied or not.
    source : str
        Hub name or local folder of a Wav2Vec2ForCTC, HubertForCTC or
        WavLMForCTC.
    labels : sequence of str, optional
        What the outputs of the exits stand for: characters, "\u2581" between
        words, "<unk>". The rows of the head are brought into this order by the
        source's ``vocab.json``. The blank's name does not matter, and rows that
        are not named come last. Without labels the order stays.
    save_path : str, optional
        Where downloads are kept (default: Hugging Face's own cache).

    Raises
    ------
    FileNotFoundError
        If there is no such model, or no vocab.json though there are labels.
    ValueError
        If the model is no CTC model, or another one than the encoder, or its
        labels are others.

    Example
    -------
    >>> from transformers import HubertConfig, HubertForCTC
    >>> folder = str(getfixture("tmp_path"))
    >>> small = {"num_hidden_layers": 2, "hidden_size": 32}
    >>> small |= {"num_attention_heads": 4, "intermediate_size": 64}
    >>> HubertForCTC(HubertConfig(**small)).save_pretrained(folder)
    >>> encoder = HuggingFaceEncoder("hubert", pretrained=False, config=small)
    >>> exits = CTCHeads([1, 2], encoder.output_size, vocab_size=32)
    >>> start_from_ctc(encoder, exits, folder)
    >>> torch.equal(exits.linear["1"].weight, exits.linear["2"].weight)
    True
    """
    if not isinstance(encoder, HuggingFaceEncoder):
        raise ValueError(
            f"ctc_source: {type(encoder).__name__} takes no Hugging Face "
            "weights; only a HuggingFaceEncoder does."
        )
    model = _load(source, save_path)
    _check_same_model(encoder, model, source)
    _check_waveforms(encoder, source, save_path)
    head, blank = model.lm_head, model.config.pad_token_id
    if head.out_features != exits.vocab_size:
        raise ValueError(
            f"ctc_source: {source!r} has {head.out_features} labels, the exits "
            f"{exits.vocab_size}: set output_neurons: {head.out_features}."
        )
    if labels is not None:
        rows = _rows(labels, exits, _known_labels(source, save_path), blank)
    elif blank == exits.blank_index:
        rows = list(range(exits.vocab_size))
    else:
        raise ValueError(
            f"ctc_source: the blank of {source!r} is label {blank}, that of "
            f"the exits {exits.blank_index}: set blank_index: {blank}, or give "
            "labels."
        )
    own = encoder.model.state_dict()
    theirs = model.base_model.state_dict()
    encoder.model.load_state_dict({k: theirs.get(k, own[k]) for k in own})
    with torch.no_grad():
        for linear in exits.linear.values():
            linear.weight.copy_(head.weight[rows])
            linear.bias.copy_(head.bias[rows])


def _load(source, save_path):
    """The CTC model, of which every weight must be there."""
    try:
        model, report = AutoModelForCTC.from_pretrained(
            source,
            cache_dir=save_path,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except OSError as error:
        raise FileNotFoundError(
            f"ctc_source: {source!r} cannot be loaded: it is no folder with a "
            "config.json and weights, and no model on the hub that can be "
            "reached from here. Give a folder in Hugging Face format or a hub "
            "name (owner/model)."
        ) from error
    # Only training with masks needs this one.
    missing = {k for k in report["missing_keys"] if "masked_spec" not in k}
    if missing:
        raise ValueError(
            f"ctc_source: {source!r} is no model fine-tuned with CTC: it has "
            f"no weights for {', '.join(sorted(missing)[:3])}. A model that "
            "was only pre-trained is a source, not a ctc_source."
        )
    return model


def _check_same_model(encoder, model, source):
    """Raise unless the weights mean in the encoder what they mean there."""
    ours, theirs = encoder.model.config, model.config
    if theirs.model_type != ours.model_type:
        raise ValueError(
            f"ctc_source: {source!r} is a {theirs.model_type} model, the "
            f"encoder {ours.model_type}: give {source!r} as source too."
        )

    def read(config, key):
        """A value that compares the same from JSON and from Python."""
        value = getattr(config, key, None)
        return list(value) if isinstance(value, tuple) else value

    for key in _ARCHITECTURE:
        if read(ours, key) != read(theirs, key):
            raise ValueError(
                f"ctc_source: {source!r} has {key}: {read(theirs, key)}, the "
                f"encoder {read(ours, key)}: give {source!r} as source too."
            )
    if theirs.num_hidden_layers < encoder.num_layers:
        raise ValueError(
            f"ctc_source: {source!r} has {theirs.num_hidden_layers} layers, "
            f"the encoder {encoder.num_layers}: set num_layers: "
            f"{theirs.num_hidden_layers}, or give {source!r} as source too."
        )


def _check_waveforms(encoder, source, save_path):
    """Raise if the model was trained on waveforms normalised otherwise."""
    try:
        normalizes = preprocessor_normalizes(source, save_path)
    except FileNotFoundError:
        logger.warning(
            "ctc_source: %r has no preprocessor_config.json; it is taken to "
            "have been trained with normalize_wav: %s, as the encoder has it.",
            source,
            encoder.normalize_wav,
        )
        return
    if normalizes is not encoder.normalize_wav:
        raise ValueError(
            f"ctc_source: {source!r} was trained with normalize_wav: "
            f"{normalizes}, the encoder has {encoder.normalize_wav}: give "
            f"{source!r} as source too."
        )


def _known_labels(source, save_path) -> dict[str, int]:
    """Our name of every label of a model, and its row."""
    try:
        file = cached_file(source, "vocab.json", cache_dir=save_path)
    except OSError as error:
        raise FileNotFoundError(
            f"ctc_source: {source!r} has no vocab.json, which says what its "
            "labels are. Copy it from where the model is from."
        ) from error
    known = json.loads(Path(file).read_text(encoding="utf-8"))
    if not all(isinstance(row, int) for row in known.values()):
        raise ValueError(
            f"ctc_source: vocab.json of {source!r} is no table of labels and "
            "rows, such as that of a model of one language."
        )
    for ours, theirs in _SAME_LABELS:
        if theirs in known:
            known.setdefault(ours, known[theirs])
    return known


def _rows(labels, exits, known, blank) -> list[int]:
    """The row of the head for every output of the exits."""
    rows, lacking = {exits.blank_index: blank}, []
    for index, label in enumerate(labels):
        # Transcripts in the other case name the same labels.
        names = (label, label.upper(), label.lower())
        found = [known[name] for name in names if name in known]
        if index == exits.blank_index or (label == UNKNOWN and not found):
            continue
        if not found:
            lacking.append(label)
        elif found[0] in rows.values():
            raise ValueError(
                f"labels: {label!r} and another label of the tokenizer are one "
                "label of the ctc_source: write transcripts in one case."
            )
        else:
            rows[index] = found[0]
    if lacking:
        raise ValueError(
            f"ctc_source: its vocab.json lacks {len(lacking)} labels of the "
            f"tokenizer: {' '.join(lacking[:10])}. It must know all characters "
            "of the transcripts, and the tokenizer have token_type: char."
        )
    free = iter(sorted(set(range(exits.vocab_size)) - set(rows.values())))
    return [
        rows[k] if k in rows else next(free) for k in range(exits.vocab_size)
    ]
