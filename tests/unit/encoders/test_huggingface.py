"""Loading of Hugging Face models: real format, clear errors, freezing."""

import json

import pytest
import torch
import transformers

from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
from tests.unit.encoders.backbones import SMALL, save_pretrained


@pytest.mark.parametrize("model_type", ["wav2vec2", "hubert", "wavlm"])
@pytest.mark.parametrize("do_normalize", [False, True])
@torch.no_grad()
def test_a_local_folder_gives_its_weights(tmp_path, model_type, do_normalize):
    model = save_pretrained(tmp_path, model_type, do_normalize=do_normalize)
    encoder = HuggingFaceEncoder(str(tmp_path)).eval()
    wav = 3 + 0.1 * torch.randn(8000)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    inputs = extractor(wav.numpy(), sampling_rate=16000, return_tensors="pt")
    expected = model(inputs["input_values"]).last_hidden_state
    states, _ = encoder(wav[None], layers=[2], normed=[2])
    assert encoder.normalize_wav is do_normalize
    assert encoder.model.state_dict().keys() == model.state_dict().keys()
    assert (states[0] - expected).abs().max() <= 1e-5


def test_weights_in_half_precision_are_computed_with_in_single(tmp_path):
    save_pretrained(tmp_path, "hubert").half().save_pretrained(tmp_path)
    encoder = HuggingFaceEncoder(str(tmp_path))
    assert {x.dtype for x in encoder.parameters()} == {torch.float32}


def test_pretrained_false_takes_the_configuration_but_not_the_weights(tmp_path):
    model = save_pretrained(tmp_path, "hubert")
    encoder = HuggingFaceEncoder(str(tmp_path), pretrained=False)
    ours = encoder.model.feature_projection.projection.weight
    assert ours.shape == model.feature_projection.projection.weight.shape
    assert not torch.equal(ours, model.feature_projection.projection.weight)


@pytest.mark.parametrize("source", ["/no/such/folder", "./nowhere", "hubrt"])
def test_a_source_that_is_no_folder_says_what_to_give(source):
    with pytest.raises(FileNotFoundError, match="Hugging Face format"):
        HuggingFaceEncoder(source)


def test_a_hub_name_that_cannot_be_reached_says_how_to_give_a_folder(
    monkeypatch,
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="give that folder as source"):
        HuggingFaceEncoder("nobody/no-such-model")


def test_a_model_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="'bert' model; known are hubert"):
        HuggingFaceEncoder(str(tmp_path))


def test_a_checkpoint_with_fewer_layers_is_refused(tmp_path):
    save_pretrained(tmp_path, "wavlm")
    with pytest.raises(ValueError, match="num_hidden_layers: 4 its own"):
        HuggingFaceEncoder(str(tmp_path), config={"num_hidden_layers": 4})


@pytest.mark.parametrize("pretrained", [False, True])
def test_an_unknown_entry_of_the_configuration_is_named(tmp_path, pretrained):
    save_pretrained(tmp_path, "hubert")
    with pytest.raises(ValueError, match="no num_hiden_layers"):
        HuggingFaceEncoder(
            str(tmp_path), pretrained, config={"num_hiden_layers": 1}
        )


def test_a_folder_without_preprocessor_asks_about_normalisation(tmp_path):
    save_pretrained(tmp_path, "wav2vec2")
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="normalize_wav: True or False"):
        HuggingFaceEncoder(str(tmp_path))
    assert HuggingFaceEncoder(str(tmp_path), normalize_wav=True).normalize_wav


def test_an_adapter_is_refused(tmp_path):
    config = transformers.Wav2Vec2Config(**SMALL, add_adapter=True)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="add_adapter"):
        HuggingFaceEncoder(str(tmp_path), pretrained=False)


def test_frozen_stays_in_evaluation_mode_and_untrained():
    encoder = HuggingFaceEncoder(
        "wav2vec2", pretrained=False, freeze=True, config=SMALL
    )
    parent = torch.nn.ModuleList([encoder]).train()
    assert parent.training
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("freeze", [False, True])
def test_the_convolutional_front_end_is_frozen_on_request(freeze):
    encoder = HuggingFaceEncoder(
        "wavlm", pretrained=False, freeze_feature_extractor=freeze, config=SMALL
    )
    front = encoder.model.feature_extractor.parameters()
    assert all(p.requires_grad is not freeze for p in front)


def test_spec_augment_masks_in_training_only():
    config = {**SMALL, "mask_time_prob": 0.5, "mask_time_length": 4}
    encoder = HuggingFaceEncoder(
        "hubert",
        pretrained=False,
        apply_spec_augment=True,
        config={**config, "hidden_dropout": 0.0, "feat_proj_dropout": 0.0},
    )
    wavs = torch.randn(1, 8000)
    encoder.eval()
    clean = encoder.begin(wavs).hidden
    assert torch.equal(clean, encoder.begin(wavs).hidden)
    encoder.train()
    assert not torch.equal(clean, encoder.begin(wavs).hidden)


@pytest.mark.parametrize("model_type", ["wav2vec2", "hubert", "wavlm"])
@torch.no_grad()
def test_the_first_layers_alone_say_what_they_say_in_the_whole(
    tmp_path, model_type
):
    save_pretrained(tmp_path, model_type, num_hidden_layers=4)
    whole = HuggingFaceEncoder(str(tmp_path)).eval()
    first = HuggingFaceEncoder(str(tmp_path), num_layers=3).eval()
    assert (whole.num_layers, first.num_layers) == (4, 3)
    wavs = torch.randn(1, 8000)
    (ours,), _ = first(wavs, layers=[3])
    (theirs,), _ = whole(wavs, layers=[3])
    assert torch.equal(ours, theirs)


def test_more_layers_than_there_are_are_refused(tmp_path):
    save_pretrained(tmp_path, "wav2vec2")
    with pytest.raises(ValueError, match="no weights"):
        HuggingFaceEncoder(str(tmp_path), num_layers=3)


def test_a_batch_shorter_than_a_mask_goes_without_and_reads_all_parameters():
    encoder = HuggingFaceEncoder(
        "wavlm",
        pretrained=False,
        apply_spec_augment=True,
        config={**SMALL, "mask_time_length": 10},
    ).train()
    for samples in (1600, 8000):  # 4 and 24 frames
        encoder.zero_grad()
        (hidden,), _ = encoder(torch.randn(2, samples), layers=[2])
        hidden.sum().backward()
        assert all(
            p.grad is not None for p in encoder.parameters() if p.requires_grad
        )


@pytest.mark.parametrize("model_type", ["wav2vec2", "hubert", "wavlm"])
def test_the_base_configuration_has_the_size_of_the_base_models(model_type):
    with torch.device("meta"):
        encoder = HuggingFaceEncoder(model_type, pretrained=False)
    count = sum(p.numel() for p in encoder.parameters())
    assert count / 1e6 == pytest.approx(94.4, rel=0.03)
    assert encoder.num_layers == 12 and encoder.output_size == 768
