"""Wav2Vec2, HuBERT and WavLM from Hugging Face, layer by layer.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

try:
    from transformers import (
        CONFIG_MAPPING,
        AutoConfig,
        AutoFeatureExtractor,
        AutoModel,
        PretrainedConfig,
    )
except ImportError as error:
    raise ImportError(
        "Hugging Face encoders need transformers: "
        "pip install 'speechbrain-ee[ssl]'"
    ) from error

from speechbrain_ee.encoders.base import (
    LayerwiseEncoder,
    check_frames,
    is_padded,
    padding_mask,
    sample_counts,
)
from speechbrain_ee.encoders.convolution import real_frames_only

if TYPE_CHECKING:
    from speechbrain_ee.gates import LayerGate

MODEL_TYPES = ("hubert", "wav2vec2", "wavlm")


class HuggingFaceEncoder(LayerwiseEncoder):
    """A self-supervised encoder; ``model`` is the stock Hugging Face model.

    The configuration's ``layerdrop`` is not used: a gate says which layers are
    dropped.

    Arguments
    ---------
    source : str
        A hub name, a local folder in Hugging Face format or, without
        pretrained weights, just ``wav2vec2``, ``hubert`` or ``wavlm`` for the
        base configuration of that model.
    pretrained : bool
        Whether to load weights; random ones otherwise.
    save_path : str, optional
        Where downloads are kept (default: Hugging Face's own cache).
    freeze : bool
        Whether nothing is trained; then evaluation mode stays on, without
        dropout, also inside a training Brain.
    freeze_feature_extractor : bool
        Whether the convolutional front end is not trained.
    normalize_wav : bool, optional
        Whether each waveform is brought to zero mean and unit variance
        (default: what the pretrained model's preprocessor says; else True).
    apply_spec_augment : bool
        Whether states are masked before the first layer in training. A batch
        shorter than one mask goes without.
    num_layers : int, optional
        Keep only the first layers, so many (default: all).
    config : dict, optional
        Entries of the model configuration to set, e.g. ``num_hidden_layers``.
    gate : LayerGate, optional
        Which layers run (default: all), see ``LayerwiseEncoder.attach``.

    Example
    -------
    >>> small = {"num_hidden_layers": 2, "hidden_size": 32}
    >>> small |= {"num_attention_heads": 4, "intermediate_size": 64}
    >>> encoder = HuggingFaceEncoder("wavlm", pretrained=False, config=small)
    >>> wavs, wav_lens = torch.randn(2, 8000), torch.tensor([1.0, 0.5])
    >>> states, frames = encoder.eval()(wavs, wav_lens)
    >>> len(states), frames.tolist(), states[2].shape
    (3, [24, 12], torch.Size([2, 24, 32]))
    """

    def __init__(
        self,
        source: str,
        pretrained: bool = True,
        save_path: str | None = None,
        freeze: bool = False,
        freeze_feature_extractor: bool = True,
        normalize_wav: bool | None = None,
        apply_spec_augment: bool = False,
        num_layers: int | None = None,
        config: dict | None = None,
        gate: LayerGate | None = None,
    ):
        super().__init__()
        self.source = source
        settings = {
            "layerdrop": 0.0,
            "apply_spec_augment": apply_spec_augment,
            **(config or {}),
        }
        if num_layers is not None:
            settings["num_hidden_layers"] = num_layers
        model_config = _load_config(source, pretrained, save_path, settings)
        if pretrained:
            self.model = _load_weights(source, model_config, save_path)
            if normalize_wav is None:
                normalize_wav = preprocessor_normalizes(source, save_path)
        else:
            self.model = AutoModel.from_config(model_config)
        self.normalize_wav = normalize_wav is not False
        self.stable_layer_norm = model_config.do_stable_layer_norm
        self.output_size = model_config.hidden_size

        self.frozen = freeze
        if freeze:
            self.model.requires_grad_(False)
        if freeze_feature_extractor:
            self.model.feature_extractor._freeze_parameters()
        masked = model_config.mask_time_prob or model_config.mask_feature_prob
        if masked and not apply_spec_augment:
            # Never used then, and DDP waits for unused parameters.
            self.model.masked_spec_embed.requires_grad_(False)
        self.attach(gate)
        self.train(self.training)

    @property
    def layers(self):
        """See ``LayerwiseEncoder.layers``."""
        return self.model.encoder.layers

    def frames_of(self, samples):
        """See ``LayerwiseEncoder.frames_of``."""
        frames = self.model._get_feat_extract_output_lengths(samples)
        return frames.clamp_min(0)

    def begin(self, wavs, wav_lens=None, masked=None):
        """See ``LayerwiseEncoder.begin``.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms of shape (batch, samples).
        wav_lens : torch.Tensor, optional
            Lengths relative to the longest, of shape (batch,).
        masked : torch.Tensor, optional
            bool of shape (batch, time): the frames that the model's mask
            embedding stands for, also in evaluation, instead of those that
            SpecAugment would draw.

        Returns
        -------
        EncoderState
            The state at layer 0.
        """
        samples = sample_counts(wavs, wav_lens)
        frames = self.frames_of(samples)
        check_frames(frames, samples)
        features = self._extract_features(wavs, samples)[:, : int(frames.max())]
        hidden = self.model.feature_projection(features)
        if isinstance(hidden, tuple):  # with the un-projected features
            hidden = hidden[0]
        mask = padding_mask(hidden, frames)
        if masked is None:
            hidden = self._mask_spans(hidden, mask)
        else:
            embedding = self.model.masked_spec_embed.to(hidden.dtype)
            hidden = torch.where(masked[..., None], embedding, hidden)
        encoder = self.model.encoder
        # Zeroed at the convolution itself: HuBERT may have a batch norm there.
        with real_frames_only([encoder.pos_conv_embed.conv], frames, mask):
            hidden = hidden + encoder.pos_conv_embed(hidden)
        if not self.stable_layer_norm:
            hidden = encoder.layer_norm(hidden)
        hidden = encoder.dropout(hidden)
        return self.first_state(hidden, frames, wavs, samples)

    def _mask_spans(self, hidden, mask):
        """SpecAugment, which the stock model refuses for short batches."""
        config = self.model.config
        masks = config.apply_spec_augment and config.mask_time_prob > 0
        short = hidden.shape[1] < config.mask_time_length
        if self.training and masks and short:
            # Read all the same: DDP waits for unused parameters.
            return hidden + 0 * self.model.masked_spec_embed.sum()
        return self.model._mask_hidden_states(
            hidden, attention_mask=(~mask).long()
        )

    def _extract_features(self, wavs, samples):
        """Convolutional features (batch, time, channel) of real samples."""
        padded = bool((samples < wavs.shape[1]).any())
        if self.normalize_wav:
            wavs = _normalize(wavs, samples)
        if padded and self.model.config.feat_extract_norm == "group":
            # The group norm looks over all of time: one utterance at a time.
            parts = [
                self.model.feature_extractor(wav[None, :n])[0].T
                for wav, n in zip(wavs, samples.tolist())
            ]
            return pad_sequence(parts, batch_first=True)
        return self.model.feature_extractor(wavs).transpose(1, 2)

    def make_context(self, hidden, frames):
        """See ``LayerwiseEncoder.make_context``."""
        bias = None
        if self.model.config.model_type == "wavlm":
            # Made in layer 1 by the stock model and handed on; made here, so
            # that layer 1 is a layer like any other.
            batch, time, _ = hidden.shape
            attention = self.layers[0].attention
            bias = attention.compute_bias(time, time).repeat(batch, 1, 1)
        return {"mask": self._attention_mask(hidden, frames), "bias": bias}

    def keep_context(self, context, hidden, frames, rows):
        """See ``LayerwiseEncoder.keep_context``."""
        bias, time = context["bias"], hidden.shape[1]
        if bias is not None:
            heads = self.model.config.num_attention_heads
            bias = bias.unflatten(0, (-1, heads))[rows, :, :time, :time]
            bias = bias.flatten(0, 1)
        return {"mask": self._attention_mask(hidden, frames), "bias": bias}

    def _attention_mask(self, hidden, frames):
        """None without padding; else as the model's attention wants it."""
        if not is_padded(hidden, frames):
            return None
        mask = padding_mask(hidden, frames)
        if self.model.config.model_type == "wavlm":
            return (~mask).long()
        lowest = torch.finfo(hidden.dtype).min
        return hidden.new_zeros(()).masked_fill(mask, lowest)[:, None, None]

    def run_layer(self, state):
        """See ``LayerwiseEncoder.run_layer``."""
        layer = self.layers[state.layer]
        mask, bias = state.context["mask"], state.context["bias"]
        if bias is None:
            hidden = layer(state.hidden, attention_mask=mask)
        else:
            hidden = layer(
                state.hidden, attention_mask=mask, position_bias=bias
            )
        return hidden[0] if isinstance(hidden, tuple) else hidden

    def closing_norm(self, layer):
        """See ``LayerwiseEncoder.closing_norm``."""
        if self.stable_layer_norm:
            return None
        return self.layers[layer].final_layer_norm

    def final_norm(self, hidden):
        """See ``LayerwiseEncoder.final_norm``."""
        if self.stable_layer_norm:
            return self.model.encoder.layer_norm(hidden)
        return hidden


def _normalize(wavs: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit variance over real samples, zeros behind them."""
    time = torch.arange(wavs.shape[1], device=wavs.device)
    real = time < samples.to(wavs.device)[:, None]
    count = samples.to(wavs.device)[:, None]
    mean = (wavs * real).sum(dim=1, keepdim=True) / count
    centred = (wavs - mean) * real
    variance = centred.square().sum(dim=1, keepdim=True) / count
    return centred / (variance + 1e-7).sqrt()  # as transformers normalises


def _load_weights(source, config, save_path):
    """The pretrained model; all of its layers must be in the checkpoint."""
    model, report = AutoModel.from_pretrained(
        source, config=config, cache_dir=save_path, output_loading_info=True
    )
    missing = [k for k in report["missing_keys"] if "encoder.layers" in k]
    if missing:
        raise ValueError(
            f"source: {source!r} has no weights for {len(missing)} parameters "
            f"of the encoder's layers, such as {min(missing)}. Is "
            f"num_hidden_layers: {config.num_hidden_layers} its own number?"
        )
    return model.float()  # some are stored in half precision


def preprocessor_normalizes(source: str, save_path: str | None = None) -> bool:
    """Whether a model was trained on normalised waveforms.

    Arguments
    ---------
    source : str
        Its hub name or local folder.
    save_path : str, optional
        Where downloads are kept (default: Hugging Face's own cache).

    Returns
    -------
    bool
        What its preprocessor says.

    Raises
    ------
    FileNotFoundError
        If it has none.

    Example
    -------
    >>> from transformers import Wav2Vec2FeatureExtractor
    >>> folder = str(getfixture("tmp_path"))
    >>> extractor = Wav2Vec2FeatureExtractor(do_normalize=False)
    >>> _ = extractor.save_pretrained(folder)
    >>> preprocessor_normalizes(folder)
    False
    """
    try:
        return AutoFeatureExtractor.from_pretrained(
            source, cache_dir=save_path
        ).do_normalize
    except OSError as error:
        raise FileNotFoundError(
            f"source: {source!r} has no preprocessor_config.json, which says "
            "whether its waveforms are normalised. Say it yourself: "
            "normalize_wav: True or False."
        ) from error


def _load_config(
    source: str, pretrained: bool, save_path: str | None, settings: dict
) -> PretrainedConfig:
    """The model configuration, or an error that says how to get one."""
    if not pretrained and source in MODEL_TYPES:
        config = CONFIG_MAPPING[source](**settings)
    else:
        config = _fetch_config(source, save_path, settings)
    if config.model_type not in MODEL_TYPES:
        raise ValueError(
            f"source: {source!r} is a {config.model_type!r} model; known are "
            f"{', '.join(MODEL_TYPES)}."
        )
    known = CONFIG_MAPPING[config.model_type]().to_dict()
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(
            f"config: a {config.model_type} model knows no "
            f"{', '.join(unknown)}."
        )
    if getattr(config, "add_adapter", False):
        raise ValueError(
            f"source: {source!r} has an adapter behind its last layer "
            "(add_adapter), which an exit cannot read. Set add_adapter: False "
            "under config."
        )
    return config


def _fetch_config(source, save_path, settings) -> PretrainedConfig:
    """The configuration that stands in a folder or on the hub."""
    if not os.path.isdir(source) and (
        source.startswith((".", "/", "~")) or source.count("/") != 1
    ):
        raise FileNotFoundError(
            f"source: {source!r} is no folder here, nor a hub name "
            "(owner/model). Give a folder in Hugging Face format (config.json, "
            "preprocessor_config.json, model.safetensors), or one of "
            f"{', '.join(MODEL_TYPES)} with pretrained: False."
        )
    try:
        return AutoConfig.from_pretrained(
            source, cache_dir=save_path, **settings
        )
    except OSError as error:
        raise FileNotFoundError(
            f"source: {source!r} cannot be loaded: there is no such folder "
            "with a config.json, and the hub did not give it (offline?). On a "
            "machine with a network, download it with 'hf download "
            f"{source} --local-dir FOLDER', and give that folder as source."
        ) from error
