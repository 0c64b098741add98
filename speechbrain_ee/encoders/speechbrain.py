"""SpeechBrain's Conformer, Branchformer and Transformer, layer by layer.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
from speechbrain.lobes.models.transformer.Branchformer import (
    BranchformerEncoderLayer,
)
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoderLayer
from speechbrain.lobes.models.transformer.TransformerASR import (
    TransformerASR,
    make_transformer_src_mask,
)

from speechbrain_ee.encoders.base import (
    LayerwiseEncoder,
    check_frames,
    is_padded,
    padding_mask,
    relative_lengths,
    sample_counts,
    silence_padding,
)
from speechbrain_ee.encoders.convolution import (
    convolve_front_end,
    frames_after,
    real_frames_only,
)
from speechbrain_ee.encoders.features import feature_frames

if TYPE_CHECKING:
    from speechbrain_ee.gates import LayerGate


class SpeechBrainEncoder(LayerwiseEncoder):
    """Features, convolutional front end and encoder of a SpeechBrain recipe.

    The parts are those of SpeechBrain's own recipes and stay as they are:
    their ``state_dict`` keys, and so their public checkpoints, fit.

    Arguments
    ---------
    transformer : TransformerASR
        Its encoder (conformer, branchformer or transformer; every attention
        type that it offers) is used, its decoder is not, nor is its
        ``layerdrop_prob``: a gate says which layers are dropped.
    compute_features : torch.nn.Module
        Waveforms (batch, samples) to features (batch, time, channel), as
        ``speechbrain.lobes.features.Fbank``, without deltas or context.
    normalize : torch.nn.Module, optional
        As ``speechbrain.processing.features.InputNormalization``.
    cnn : ConvolutionFrontEnd, optional
        Sub-samples the features.
    augment : torch.nn.Module, optional
        Feature augmentation, as ``speechbrain.augment.augmenter.Augmenter``;
        used in training only.
    gate : LayerGate, optional
        Which layers run (default: all), see ``LayerwiseEncoder.attach``.

    Example
    -------
    >>> from speechbrain.lobes.features import Fbank
    >>> transformer = TransformerASR(
    ...     tgt_vocab=10,
    ...     input_size=40,
    ...     d_model=16,
    ...     nhead=2,
    ...     num_encoder_layers=3,
    ...     num_decoder_layers=0,
    ...     d_ffn=32,
    ...     encoder_module="conformer",
    ...     attention_type="RelPosMHAXL",
    ...     normalize_before=True,
    ...     causal=False,
    ... )
    >>> encoder = SpeechBrainEncoder(transformer, Fbank(n_mels=40)).eval()
    >>> wavs, wav_lens = torch.randn(2, 8000), torch.tensor([1.0, 0.5])
    >>> states, frames = encoder(wavs, wav_lens, layers=[1, 3], normed=[3])
    >>> frames.tolist(), states[1].shape
    ([51, 26], torch.Size([2, 51, 16]))
    >>> state = encoder.step(encoder.begin(wavs, wav_lens))
    >>> encoder.keep(state, [1]).hidden.shape
    torch.Size([1, 26, 16])
    """

    def __init__(
        self,
        transformer: TransformerASR,
        compute_features: torch.nn.Module,
        normalize: torch.nn.Module | None = None,
        cnn: ConvolutionFrontEnd | None = None,
        augment: torch.nn.Module | None = None,
        gate: LayerGate | None = None,
    ):
        super().__init__()
        for neighbours in ("deltas", "context"):
            if getattr(compute_features, neighbours, False):
                raise ValueError(
                    f"compute_features: {neighbours} looks past the end of an "
                    f"utterance into its padding. Set {neighbours}: False."
                )
        self.transformer = transformer
        self.compute_features = compute_features
        self.normalize = normalize
        self.cnn = cnn
        self.augment = augment
        self.output_size = transformer.encoder.norm.norm.normalized_shape[0]
        # A Branchformer mirrors an utterance at its end, which takes more
        # frames than half its kernel.
        for layer in self.layers:
            if isinstance(layer, BranchformerEncoderLayer):
                kernel = layer.convolution_branch.csgu.conv.kernel_size
                self.least_frames = kernel // 2 + 1
        self.attach(gate)

    @property
    def layers(self):
        """See ``LayerwiseEncoder.layers``."""
        return self.transformer.encoder.layers

    def frames_of(self, samples):
        """See ``LayerwiseEncoder.frames_of``."""
        frames = feature_frames(self.compute_features, samples)
        return frames if self.cnn is None else frames_after(self.cnn, frames)

    def begin(self, wavs, wav_lens=None):
        """See ``LayerwiseEncoder.begin``."""
        samples = sample_counts(wavs, wav_lens)
        check_frames(self.frames_of(samples), samples, self.least_frames)
        features = self.compute_features(silence_padding(wavs, samples))
        frames = feature_frames(self.compute_features, samples)
        lengths = relative_lengths(features, frames)
        if self.normalize is not None:
            features = self.normalize(features, lengths)
        if self.training and self.augment is not None:
            features, _ = self.augment(features, lengths)
            if len(features) != len(frames):
                raise ValueError(
                    "The feature augmentation changed the number of "
                    "utterances, which their targets cannot follow. Set "
                    "repeat_augment: 1 and concat_original: False in it."
                )
        if self.cnn is not None:
            features, frames = convolve_front_end(self.cnn, features, frames)
        hidden = self.transformer.custom_src_module(features.flatten(2))
        if self.transformer.attention_type == "regularMHA":
            hidden = hidden + self.transformer.positional_encoding(hidden)
        return self.first_state(hidden, frames, wavs, samples)

    def make_context(self, hidden, frames):
        """See ``LayerwiseEncoder.make_context``."""
        mask = padding_mask(hidden, frames)
        positions = None
        if self.transformer.attention_type == "RelPosMHAXL":
            positions = self.transformer.positional_encoding(hidden)
        return {
            "padding": mask if is_padded(hidden, frames) else None,
            "positions": positions,
            "causal": make_transformer_src_mask(
                hidden, causal=self.transformer.causal
            ),
        }

    def keep_context(self, context, hidden, frames, rows):
        """See ``LayerwiseEncoder.keep_context``."""
        time = hidden.shape[1]
        padding, positions, causal = context.values()
        if padding is not None:
            cut = padding[rows, :time]
            padding = cut if is_padded(hidden, frames) else None
        if positions is not None:
            # (1, 2 T - 1, channel), distance 0 in the middle
            middle = positions.shape[1] // 2
            positions = positions[:, middle - time + 1 : middle + time]
        if causal is not None:
            causal = causal[:time, :time]
        return {"padding": padding, "positions": positions, "causal": causal}

    def run_layer(self, state):
        """See ``LayerwiseEncoder.run_layer``."""
        layer = self.layers[state.layer]
        padding = state.context["padding"]
        guard = nullcontext()
        if padding is not None:
            guard = real_frames_only(
                _time_convolutions(layer), state.frames, padding
            )
        with guard:
            hidden, _ = layer(
                state.hidden,
                src_mask=state.context["causal"],
                src_key_padding_mask=padding,
                pos_embs=state.context["positions"],
            )
        return hidden

    def closing_norm(self, layer):
        """See ``LayerwiseEncoder.closing_norm``."""
        layer = self.layers[layer]
        if isinstance(layer, BranchformerEncoderLayer):
            return None
        if isinstance(layer, ConformerEncoderLayer):
            return layer.norm2
        return None if layer.normalize_before else layer.norm2

    def final_norm(self, hidden):
        """See ``LayerwiseEncoder.final_norm``."""
        return self.transformer.encoder.norm(hidden)


def _time_convolutions(layer: torch.nn.Module) -> list[torch.nn.Module]:
    if isinstance(layer, ConformerEncoderLayer):
        return [layer.convolution_module.conv]
    if isinstance(layer, BranchformerEncoderLayer):
        return [layer.convolution_branch.csgu.conv]
    return []
