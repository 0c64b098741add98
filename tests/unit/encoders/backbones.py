"""Small random encoders of every kind, each with its stock model's answer."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.processing.features import InputNormalization

from speechbrain_ee.encoders import (
    FilterbankEncoder,
    LayerwiseEncoder,
    SpeechBrainEncoder,
)
from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder

NUM_LAYERS = 4


@dataclass
class Backbone:
    """An encoder of ours and what the stock model says for one waveform."""

    encoder: LayerwiseEncoder
    stock_states: Callable  # wavs (1, samples) -> states 0 … L, then output


def speechbrain_backbone(encoder_module, attention_type, causal=False):
    """Fbank, convolutional front end and TransformerASR as recipes have it."""
    transformer = TransformerASR(
        tgt_vocab=12,
        input_size=20 * 4,
        d_model=16,
        nhead=2,
        num_encoder_layers=NUM_LAYERS,
        num_decoder_layers=0,
        d_ffn=32,
        dropout=0.1,
        kernel_size=7,
        csgu_linear_units=32,
        encoder_module=encoder_module,
        attention_type=attention_type,
        positional_encoding="fixed_abs_sine"
        if attention_type == "regularMHA"
        else None,
        normalize_before=True,
        causal=causal,
        output_hidden_states=True,
    )
    cnn = ConvolutionFrontEnd(
        (None, None, 80),
        num_blocks=2,
        num_layers_per_block=1,
        out_channels=[8, 4],
        kernel_sizes=[3, 3],
        strides=[2, 2],
        residuals=[False, True],
    )
    for conv in transformer.modules():
        # SpeechBrain starts the gate's convolution at 1e-6, which would hide
        # what padding does to it.
        if isinstance(conv, torch.nn.Conv1d):
            torch.nn.init.normal_(conv.weight, std=0.3)
    features, norm = Fbank(n_mels=80), InputNormalization(norm_type="sentence")
    encoder = SpeechBrainEncoder(transformer, features, norm, cnn)

    def stock_states(wavs):
        lens = torch.ones(1)
        x = cnn(norm(features(wavs), lens))
        output, hidden = transformer.encode(x, lens)
        return [*hidden, output]

    return Backbone(encoder.eval(), stock_states)


def huggingface_backbone(model_type, stable=False, **config):
    """A small model of the base or of the stable-layer-norm (large) kind."""
    encoder = HuggingFaceEncoder(
        model_type,
        pretrained=False,
        config={
            "num_hidden_layers": NUM_LAYERS,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "conv_dim": [16] * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "do_stable_layer_norm": stable,
            "feat_extract_norm": "layer" if stable else "group",
            "conv_bias": stable,
            **config,
        },
    )
    for norm in encoder.modules():
        if isinstance(norm, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(norm.bias, std=0.2)

    def stock_states(wavs):
        centred = wavs - wavs.mean()
        wavs = centred / (wavs.var(correction=0) + 1e-7).sqrt()
        hidden = []
        hooks = [
            layer.register_forward_hook(
                lambda m, args, output: hidden.append(
                    output[0] if isinstance(output, tuple) else output
                )
            )
            for layer in encoder.model.encoder.layers
        ]
        first = encoder.model.encoder.layers[0].register_forward_pre_hook(
            lambda m, args: hidden.append(args[0])
        )
        output = encoder.model(wavs).last_hidden_state
        for hook in [*hooks, first]:
            hook.remove()
        return [*hidden, output]

    return Backbone(encoder.eval(), stock_states)


def filterbank_backbone():
    """Features of the benchmarks, without any layer."""
    features, norm = (
        Fbank(n_mels=80, deltas=True),
        InputNormalization(norm_type="sentence"),
    )

    def stock_states(wavs):
        x = norm(features(wavs), torch.ones(1))
        return [x, x]

    return Backbone(FilterbankEncoder().eval(), stock_states)


# A configuration of few parameters.
SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


def save_pretrained(
    folder, model_type, vocab=None, do_normalize=True, **config
):
    """A small random model in the format that the hub gives.

    It is one with a CTC head where there is a vocabulary, of which entry 0 is
    the blank.
    """
    settings = {**SMALL, **config}
    if vocab is None:
        made = transformers.AutoModel
    else:
        made = transformers.AutoModelForCTC
        settings |= {"vocab_size": len(vocab), "pad_token_id": 0}
        rows = {label: row for row, label in enumerate(vocab)}
        folder.mkdir(exist_ok=True)
        (folder / "vocab.json").write_text(json.dumps(rows))
    config = transformers.CONFIG_MAPPING[model_type](**settings)
    model = made.from_config(config)
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(
        do_normalize=do_normalize
    ).save_pretrained(folder)
    return model.eval()


BACKBONES = {
    f"{module}-{attention}": (speechbrain_backbone, (module, attention))
    for module in ("conformer", "branchformer", "transformer")
    for attention in ("regularMHA", "RelPosMHAXL", "hypermixing", "RoPEMHA")
    # SpeechBrain's Branchformer has no RoPE attention.
    if (module, attention) != ("branchformer", "RoPEMHA")
}
BACKBONES |= {
    "conformer-causal": (
        speechbrain_backbone,
        ("conformer", "RelPosMHAXL", True),
    )
}
BACKBONES |= {
    f"{model}-{'stable' if stable else 'base'}": (
        huggingface_backbone,
        (model, stable),
    )
    for model in ("wav2vec2", "hubert", "wavlm")
    for stable in (False, True)
}
BACKBONES |= {
    "hubert-batch-norm": (
        lambda: huggingface_backbone("hubert", conv_pos_batch_norm=True),
        (),
    )
}

# Features alone: nothing to run, to train or to leave.
WITHOUT_LAYERS = {"fbank": (filterbank_backbone, ())}


def build(name) -> Backbone:
    """The backbone of that name, always with the same random weights."""
    torch.manual_seed(0)
    make, args = (BACKBONES | WITHOUT_LAYERS)[name]
    return make(*args)
