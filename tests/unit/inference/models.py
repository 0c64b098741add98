"""Small runs of every family, as training leaves them, without the training."""

import io
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references

from speechbrain_ee.inference import write_inference
from speechbrain_ee.runtime import EarlyExitLoop

SPEECHBRAIN = """
output_folder: results/small
sample_rate: 16000
kind: conformer
norm_type: global
num_layers: 4
exit_layers: [1, 2, 4]
tied: False
exit_norm: shared
pair: [3, 3]

compute_features: !new:speechbrain.lobes.features.Fbank
    sample_rate: !ref <sample_rate>
    n_mels: 20  # few

normalize: !new:speechbrain.processing.features.InputNormalization
    norm_type: !ref <norm_type>

cnn: !new:speechbrain.lobes.models.convolution.ConvolutionFrontEnd
    input_shape: !!python/tuple [8, 10, 20]
    num_blocks: 2
    num_layers_per_block: 1
    out_channels: !ref <pair>
    kernel_sizes: !ref <pair>
    strides: [2, 2]
    residuals: [False, False]

transformer: !new:speechbrain.lobes.models.transformer.TransformerASR.TransformerASR
    tgt_vocab: 12
    input_size: 15
    d_model: 16
    nhead: 2
    num_encoder_layers: !ref <num_layers>
    num_decoder_layers: 0
    d_ffn: 32
    kernel_size: 7
    csgu_linear_units: 32
    encoder_module: !ref <kind>
    attention_type: RelPosMHAXL
    positional_encoding: null
    normalize_before: True
    causal: False

# Augmentation
drop: !new:speechbrain.augment.freq_domain.SpectrogramDrop
    dim: 1
augment: !new:speechbrain.augment.augmenter.Augmenter
    augmentations: [!ref <drop>]

encoder: !new:speechbrain_ee.encoders.SpeechBrainEncoder
    transformer: !ref <transformer>
    compute_features: !ref <compute_features>
    normalize: !ref <normalize>
    cnn: !ref <cnn>
    augment: !ref <augment>

exits: !new:speechbrain_ee.heads.CTCHeads
    exit_layers: !ref <exit_layers>
    input_size: 16
    vocab_size: 12
    tied: !ref <tied>
    exit_norm: !ref <exit_norm>

epoch_counter: !new:speechbrain.utils.epoch_loop.EpochCounter
    limit: 3
"""  # noqa: E501

HUGGING_FACE = """
output_folder: results/small
sample_rate: 16000
kind: wavlm
pretrained: False
num_layers: 4
exit_layers: [1, 2, 4]
tied: False
exit_norm: shared

encoder: !new:speechbrain_ee.encoders.huggingface.HuggingFaceEncoder
    source: !ref <kind>
    pretrained: !ref <pretrained>
    save_path: !ref <output_folder>/cache
    config:
        num_hidden_layers: !ref <num_layers>
        hidden_size: 16
        num_attention_heads: 2
        intermediate_size: 24
        conv_dim: [8, 8, 8, 8, 8, 8, 8]
        num_conv_pos_embeddings: 8
        num_conv_pos_embedding_groups: 2
        do_stable_layer_norm: True
        feat_extract_norm: layer

exits: !new:speechbrain_ee.heads.CTCHeads
    exit_layers: !ref <exit_layers>
    input_size: 16
    vocab_size: 12
    tied: !ref <tied>
    exit_norm: !ref <exit_norm>
"""

KINDS = {
    **dict.fromkeys(("conformer", "branchformer", "transformer"), SPEECHBRAIN),
    **dict.fromkeys(("wav2vec2", "hubert", "wavlm"), HUGGING_FACE),
}


@dataclass
class Run:
    """A run's folder, and what it has trained."""

    folder: Path
    hparams: dict

    @property
    def hparams_file(self):
        return self.folder / "hyperparams.yaml"

    @property
    def tokenizer_model(self):
        return self.folder / "char.model"

    @property
    def modules(self):
        return self.hparams["encoder"], self.hparams["exits"]

    def export(self, folder, **settings):
        """The model in a folder, ready for inference."""
        write_inference(
            folder,
            self.hparams_file,
            *self.modules,
            self.tokenizer_model,
            **settings,
        )
        return folder


def make_run(folder, kind="conformer", template=None, **overrides):
    """What training leaves, with random weights that matter everywhere."""
    torch.manual_seed(0)
    folder.mkdir()
    text = resolve_references(
        io.StringIO(template or KINDS[kind]), {"kind": kind, **overrides}
    ).getvalue()
    run = Run(folder, load_hyperpyyaml(text))
    # As create_experiment_directory does.
    run.hparams_file.write_text(f"# Generated from:\n# train.yaml\n{text}")
    train_tokenizer(run.tokenizer_model)
    for module in map(torch.nn.Module.modules, run.modules):
        for part in module:
            if isinstance(part, torch.nn.LayerNorm):
                torch.nn.init.normal_(part.weight, 1.0, 0.3)
                torch.nn.init.normal_(part.bias, std=0.3)
    encoder, exits = run.modules
    for head in exits.linear.values():
        torch.nn.init.normal_(head.weight)
    if "normalize" in run.hparams:
        wavs, wav_lens = make_wavs()
        run.hparams["normalize"](encoder.compute_features(3 * wavs), wav_lens)
    encoder.eval(), exits.eval()
    return run


def train_tokenizer(path, labels=10, bos=-1, eos=-1):
    """Characters; fewer labels than the heads have."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ABCDEF GA", "FEED A CAB"]),
        model_writer=model,
        model_type="char",
        vocab_size=labels,
        pad_id=0,
        unk_id=1,
        bos_id=bos,
        eos_id=eos,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def make_wavs(samples=(16000, 9000, 12000, 5000)):
    """A padded batch of noise that changes its colour, and its lengths."""
    generator = torch.Generator().manual_seed(0)
    wavs = torch.zeros(len(samples), max(samples))
    for wav, count in zip(wavs, samples):
        noise = torch.randn(count, generator=generator)
        tone = torch.sin(torch.linspace(0, 900, count) ** 1.3)
        wav[:count] = 0.1 * noise + 0.3 * tone
    return wavs, torch.tensor(samples) / max(samples)


def read_exits(encoder, exits, wavs, wav_lens):
    """What every exit says of every utterance."""
    outputs = {}
    EarlyExitLoop(encoder, exits, "never")(
        wavs,
        wav_lens,
        on_exit=lambda output, _: outputs.update({output.exit_layer: output}),
    )
    return outputs
