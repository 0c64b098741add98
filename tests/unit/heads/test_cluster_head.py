"""The cluster head against its equation."""

import torch

from speechbrain_ee.heads import ClusterHead


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
