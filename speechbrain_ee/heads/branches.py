"""Stand-in, until the branch `branches` brings its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from speechbrain_ee.heads.output import ExitOutput


@dataclass
class BranchOutput(ExitOutput):
    """Reading of a branch."""

    @cached_property
    def hypotheses(self):
        """None."""
        return [()] * len(self)


class ClusterBranches(torch.nn.Module):
    """One linear cluster head behind each state it reads."""

    normed_layers = frozenset()

    def __init__(self, exit_layers, input_size, num_clusters):
        super().__init__()
        self.exit_layers = list(exit_layers)
        self.input_size = input_size
        self.num_clusters = num_clusters
        self.linear = torch.nn.ModuleDict(
            {
                str(k): torch.nn.Linear(input_size, num_clusters)
                for k in self.exit_layers
            }
        )

    def logits(self, hidden, exit_layer):
        """Of one layer."""
        return self.linear[str(exit_layer)](hidden)

    def forward(self, states):
        """All."""
        return torch.stack(
            [self.logits(h, k) for k, h in zip(self.exit_layers, states)]
        )

    def read(self, hidden, frames, exit_layer):
        """One."""
        log_probs = self.logits(hidden, exit_layer).float().log_softmax(-1)
        return BranchOutput(log_probs, frames, exit_layer)


def save_branches(folder, branches, facts):
    """Save."""
    folder = Path(folder)
    folder.mkdir(exist_ok=True, parents=True)
    save_file(branches.state_dict(), folder / "branches.safetensors")
    shape = [branches.exit_layers, branches.input_size, branches.num_clusters]
    (folder / "branches.json").write_text(json.dumps({**facts, "shape": shape}))


def load_branches(folder, upstream=None):
    """Load."""
    folder = Path(folder)
    facts = json.loads((folder / "branches.json").read_text())
    branches = ClusterBranches(*facts["shape"])
    branches.load_state_dict(load_file(folder / "branches.safetensors"))
    return branches.requires_grad_(False).eval()
