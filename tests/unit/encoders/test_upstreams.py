"""The blocks of ``hparams/upstreams``, and how a recipe's YAML takes them."""

from pathlib import Path

import pytest
from hyperpyyaml import load_hyperpyyaml

from speechbrain_ee.encoders import FilterbankEncoder
from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
from speechbrain_ee.overrides import resolve_overrides
from tests.unit.encoders.backbones import save_pretrained

BLOCKS = Path(__file__).parents[3] / "hparams"
HUB = sorted(x for x in (BLOCKS / "upstreams").glob("*") if x.stem != "fbank")

YAML = """
upstream: !new:speechbrain_ee.encoders.huggingface.HuggingFaceEncoder
    source: facebook/hubert-base-ls960
    freeze: True
sizes: !ref <upstream.state_sizes>
linear: !new:torch.nn.Linear
    in_features: !ref <upstream.output_size>
    out_features: 3
modules:
    upstream: !ref <upstream>
    linear: !ref <linear>
brain: !name:types.SimpleNamespace
    upstream: !ref <upstream>
checkpointer: !new:types.SimpleNamespace
    recoverables:
        linear: !ref <linear>
        upstream: !ref <upstream>
"""


def load(folder, overrides):
    file = folder / "train.yaml"
    file.write_text(YAML)
    return load_hyperpyyaml(YAML, resolve_overrides(file, overrides, BLOCKS))


@pytest.mark.parametrize("kind", ["folder", "block", "fbank"])
def test_one_and_the_same_upstream_is_seen_everywhere(kind, tmp_path):
    model = tmp_path / "model"
    save_pretrained(model, "wavlm")
    overrides = f"upstream: {{source: {model}}}"
    if kind == "fbank":
        overrides = "upstream: fbank"
    elif kind == "block":
        block = tmp_path / "mine.yaml"
        block.write_text(
            "!new:speechbrain_ee.encoders.huggingface.HuggingFaceEncoder\n"
            f"source: {model}\nfreeze: True\n"
        )
        overrides = f"upstream: {block}"
    hparams = load(tmp_path, overrides)
    upstream = hparams["upstream"]
    assert hparams["modules"]["upstream"] is upstream
    assert hparams["brain"]().upstream is upstream
    assert hparams["checkpointer"].recoverables["upstream"] is upstream
    assert hparams["linear"] is hparams["modules"]["linear"]
    assert hparams["sizes"] == upstream.state_sizes
    assert upstream.state_sizes == ([240] if kind == "fbank" else [16] * 3)
    assert hparams["linear"].in_features == upstream.output_size
    assert not upstream.train().training
    assert not any(p.requires_grad for p in upstream.parameters())


def test_the_filterbanks_are_those_of_superb(tmp_path):
    upstream = load(tmp_path, "upstream: fbank")["upstream"]
    assert isinstance(upstream, FilterbankEncoder)
    assert upstream.state_sizes == [240]


@pytest.mark.parametrize("block", HUB, ids=lambda x: x.stem)
def test_a_block_gives_a_frozen_public_model(block, tmp_path, monkeypatch):
    model = tmp_path / "model"
    save_pretrained(model, "hubert")
    asked = []

    class Local(HuggingFaceEncoder):
        """The model that a block names, from a folder."""

        def __init__(self, source, **settings):
            asked.append(source)
            super().__init__(str(model), **settings)

    name = "speechbrain_ee.encoders.huggingface.HuggingFaceEncoder"
    monkeypatch.setattr(name, Local)
    upstream = load(tmp_path, f"upstream: {block.stem}")["upstream"]
    assert type(upstream) is Local and upstream.frozen
    (source,) = set(asked)
    assert source.count("/") == 1
    key = (
        block.stem.replace("_", "")
        .replace("plus", "")
        .replace("xlsr53", "xlsr")
    )
    assert key in source.lower().replace("-", "").replace("_", "")
