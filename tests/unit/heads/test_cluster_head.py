"""The cluster head against its equation, and heads of other checkpoints."""

import sys
from argparse import Namespace

import pytest
import torch
from safetensors.torch import save_file

from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
from speechbrain_ee.heads import ClusterHead, HeadTargets, load_cluster_head
from tests.unit.encoders.backbones import SMALL


def test_logits_are_scaled_cosines():
    torch.manual_seed(0)
    head = ClusterHead(6, 9, proj_size=4, temperature=0.2)
    hidden = torch.randn(2, 3, 6)
    logits = head(hidden)
    projected = hidden @ head.final_proj.weight.T + head.final_proj.bias
    for b in range(2):
        for t in range(3):
            for c in range(9):
                cosine = torch.nn.functional.cosine_similarity(
                    projected[b, t], head.label_embs_concat[c], dim=0
                )
                assert abs(logits[b, t, c] - cosine / 0.2) < 1e-5
    assert logits.abs().max() <= 1 / 0.2 + 1e-5


def test_keys_are_those_of_fairseq():
    shapes = {
        k: tuple(x.shape) for k, x in ClusterHead(6, 9, 4).state_dict().items()
    }
    assert shapes == {
        "final_proj.weight": (4, 6),
        "final_proj.bias": (4,),
        "label_embs_concat": (9, 4),
    }


def test_every_parameter_gets_a_gradient():
    head = ClusterHead(6, 9)
    head(torch.randn(2, 6))[:, 0].sum().backward()
    assert all(p.grad is not None for p in head.parameters())


class Dictionary:
    """Stands for a class that only fairseq has."""


def fairseq_like(**sizes):
    """A checkpoint of a whole model, with what else fairseq keeps in it."""
    torch.manual_seed(1)
    head = ClusterHead(**{"input_size": 16, "num_clusters": 9, **sizes})
    weights = {"encoder.layers.0.fc1.weight": torch.zeros(2, 2)}
    settings = {"task": {"labels": ["km"]}, "model": {"logit_temp": 0.2}}
    return {
        "args": Namespace(lr=0.1),
        "cfg": settings,
        "model": {**weights, **head.state_dict()},
        "task_state": {"dictionaries": [Dictionary()]},
    }


def test_a_head_is_read_from_a_checkpoint_by_fairseq(tmp_path, monkeypatch):
    checkpoint = fairseq_like()
    torch.save(checkpoint, tmp_path / "hubert.pt")
    monkeypatch.delattr(sys.modules[__name__], "Dictionary")
    head = load_cluster_head(tmp_path / "hubert.pt")
    assert head.num_clusters == 9 and head.temperature == 0.2
    for key, x in head.state_dict().items():
        assert torch.equal(x, checkpoint["model"][key])
    assert not any(x.requires_grad for x in head.parameters())


def test_a_head_is_read_from_weights_alone(tmp_path):
    checkpoint = fairseq_like()
    torch.save(checkpoint["model"], tmp_path / "weights.pt")
    assert load_cluster_head(tmp_path / "weights.pt").num_clusters == 9
    with pytest.raises(ValueError, match="head of 9 clusters, not .* 12"):
        load_cluster_head(tmp_path / "weights.pt", 12)


def test_a_head_is_read_from_a_folder_of_ours(tmp_path):
    saved = ClusterHead(16, 9, temperature=0.3)
    file = tmp_path / "cluster_head.safetensors"
    save_file(saved.state_dict(), file, {"temperature": "0.3"})
    for source in (tmp_path, str(file)):
        head = load_cluster_head(source)
        hidden = torch.randn(2, 5, 16)
        torch.testing.assert_close(head(hidden), saved(hidden))
    with pytest.raises(ValueError, match="head of 9 clusters, not .*: 5"):
        load_cluster_head(tmp_path, 5)


def test_of_several_sets_of_labels_the_first_is_taken(tmp_path):
    checkpoint = fairseq_like()
    checkpoint["cfg"]["task"]["labels"] = ["km", "other"]
    torch.save(checkpoint, tmp_path / "two.pt")
    with pytest.raises(ValueError, match="2 sets of labels, 9 clusters in all"):
        load_cluster_head(tmp_path / "two.pt")
    head = load_cluster_head(tmp_path / "two.pt", 4)
    first = checkpoint["model"]["label_embs_concat"][:4]
    assert torch.equal(head.label_embs_concat, first)

    weights = checkpoint["model"]
    for key in ("final_proj.weight", "final_proj.bias"):
        weights[key] = weights[key].repeat(2, *[1] * (weights[key].dim() - 1))
    torch.save(checkpoint, tmp_path / "untied.pt")
    with pytest.raises(ValueError, match="untied.pt.*untie_final_proj"):
        load_cluster_head(tmp_path / "untied.pt", 4)


def test_a_file_without_a_head_is_refused_by_its_name(tmp_path):
    weights = fairseq_like()["model"]
    del weights["label_embs_concat"]
    torch.save({"model": weights}, tmp_path / "bare.pt")
    with pytest.raises(
        ValueError, match="bare.pt has no cluster head.*k-means"
    ):
        load_cluster_head(tmp_path / "bare.pt")
    (tmp_path / "junk.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="junk.pt cannot be read.*k-means"):
        load_cluster_head(tmp_path / "junk.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="list.pt holds no state_dict"):
        load_cluster_head(tmp_path / "list.pt")
    for missing in (tmp_path, tmp_path / "none.pt", "facebook/hubert-base"):
        with pytest.raises(FileNotFoundError, match="no file .*k-means"):
            load_cluster_head(missing)


@pytest.mark.parametrize("stable", [False, True])
def test_targets_are_what_the_head_tells_of_the_models_output(stable):
    torch.manual_seed(0)
    upstream = HuggingFaceEncoder(
        "hubert",
        False,
        freeze=True,
        config={**SMALL, "do_stable_layer_norm": stable},
    )
    norm = upstream.model.encoder.layer_norm
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    head = ClusterHead(16, 9, proj_size=4)
    targets = HeadTargets(upstream, head).train()
    assert not targets.training and targets.num_clusters == 9
    wavs = 0.1 * torch.randn(2, 9000)
    labels, frames = targets(wavs, torch.tensor([1.0, 0.6]))
    for row, samples in enumerate((9000, 5400)):
        wav = wavs[row : row + 1, :samples]
        normal = (wav - wav.mean()) / (wav.var(correction=0) + 1e-7).sqrt()
        output = upstream.model(normal).last_hidden_state
        expected = head(output).argmax(dim=-1)[0]
        assert int(frames[row]) == len(expected)
        assert torch.equal(labels[row, : len(expected)], expected)
    (last,), _ = upstream(wavs, layers=[2])
    assert torch.equal(targets.label(last), targets(wavs)[0])


def test_a_head_of_another_width_is_refused():
    upstream = HuggingFaceEncoder("hubert", False, freeze=True, config=SMALL)
    with pytest.raises(ValueError, match="reads 8 channels.*output has 16"):
        HeadTargets(upstream, ClusterHead(8, 9))
