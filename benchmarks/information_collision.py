#!/usr/bin/env python3
"""Does a weighted sum over layers blend what a convolution keeps apart?

Shih and Harwath (arXiv 2406.12209) explain the gain of the hierarchical
convolution so: where layers write different things into the same subspace, a
weighted sum lets them collide. Here that is tried on states of which all is
known.

What is generated: at each frame, layer k of L has a code c_k of d normal
numbers, c_k = sqrt(rho) z + sqrt(1 - rho) u_k, with z common to all layers and
u_k its own: the codes of any two layers correlate with rho. The state is
E_k c_k + noise, with orthonormal columns in E_k (D x d) and white noise of
standard deviation 0.1. Either all layers write into one subspace (the same
E_k), or each into its own (E_k orthogonal to each other), where nothing can
collide. The target is the codes of m layers, evenly spaced, side by side.

Each interface is trained by Adam, on new frames at every step, with a linear
probe from its D channels to the target; told is R2 on 20,000 other frames.
"weighted sum + MLP" has the convolution's number of parameters in its probe. In
one subspace no scalar weights can do better than (1 + (m - 1) rho) / m by a
linear probe, noise aside; with normal codes no other probe can, either.

> python benchmarks/information_collision.py --out results/information_collision

Authors
 * SpeechBrain-EE contributors 2026
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from speechbrain_ee.analysis.plots import COLOURS, GREY
from speechbrain_ee.interfaces import (
    ConcatProjection,
    HierarchicalConv,
    WeightedSum,
)

NOISE = 0.1
TEST_FRAMES = 20_000
SUBSPACES = {"shared": "one subspace for all layers", "own": "one for each"}


class Layers:
    """Draws states and targets, see the head of this file."""

    def __init__(self, options, correlation, subspace, generator):
        self.correlation = correlation
        self.generator = generator
        self.shape = options.layers, options.code
        step = options.layers / options.needed
        self.needed = [int((k + 0.5) * step) for k in range(options.needed)]
        columns = options.code * (options.layers if subspace == "own" else 1)
        basis = torch.linalg.qr(self.normal(options.channels, columns)).Q
        # (layers, D, d); where there is one basis, it is that of all layers.
        self.bases = torch.stack(basis.split(options.code, dim=1))

    def normal(self, *shape):
        """Normal numbers of this shape."""
        return torch.randn(shape, generator=self.generator)

    def draw(self, frames):
        """States, each of shape (1, frames, channel), and their targets."""
        layers, code = self.shape
        common = self.normal(1, frames, code)
        own = self.normal(layers, frames, code)
        rho = self.correlation
        codes = rho**0.5 * common + (1 - rho) ** 0.5 * own
        states = codes @ self.bases.mT
        states += NOISE * self.normal(*states.shape)
        target = codes[self.needed].transpose(0, 1).flatten(start_dim=1)
        return list(states[:, None]), target[None]


def make_systems(options):
    """Every interface with its probe, by name."""
    sizes = [options.channels] * options.layers
    targets = options.needed * options.code
    interfaces = {
        "hierarchical convolution": HierarchicalConv(sizes),
        "concatenation": ConcatProjection(sizes),
        "weighted sum": WeightedSum(sizes),
    }
    systems = {
        name: (interface, torch.nn.Linear(interface.output_size, targets))
        for name, interface in interfaces.items()
    }
    wanted = count(*systems["hierarchical convolution"])
    hidden = round((wanted - targets) / (options.channels + 1 + targets))
    probe = torch.nn.Sequential(
        torch.nn.Linear(options.channels, hidden),
        torch.nn.ReLU(),
        torch.nn.Linear(hidden, targets),
    )
    systems["weighted sum + MLP"] = (WeightedSum(sizes), probe)
    return systems


def count(*modules):
    """Parameters of modules."""
    return sum(p.numel() for module in modules for p in module.parameters())


def train(interface, probe, layers, options):
    """R2 of the target after training, a mean over its numbers."""
    optimizer = torch.optim.Adam(
        [*interface.parameters(), *probe.parameters()], lr=options.lr
    )
    schedule = torch.optim.lr_scheduler.LinearLR(
        optimizer, 1.0, 0.01, total_iters=options.steps
    )
    for _ in range(options.steps):
        states, target = layers.draw(options.frames)
        loss = (probe(interface(states)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        states, target = layers.draw(TEST_FRAMES)
        missed = (probe(interface(states)) - target).square().sum(dim=1)
        spread = (target - target.mean(dim=1, keepdim=True)).square()
    return (1 - missed / spread.sum(dim=1)).mean().item()


def draw(table, options):
    """R2 against the correlation, a panel per kind of subspace."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, len(SUBSPACES), sharey=True)
    for axes, (subspace, title) in zip(panels, SUBSPACES.items()):
        part = table[table["subspace"] == subspace]
        for colour, name in zip(COLOURS, part["interface"].unique()):
            rows = part[part["interface"] == name]
            spread = rows.groupby("correlation")["r2"]
            axes.plot(spread.mean(), "o-", color=colour, label=name)
            axes.fill_between(
                *(spread.mean().index, spread.min(), spread.max()),
                color=colour,
                alpha=0.2,
                lw=0,
            )
        if subspace == "shared":
            axes.plot(
                [0, 1],
                [ceiling(0, options), 1],
                ":",
                color=GREY,
                label="the best of all weighted sums",
            )
        axes.set_title(title)
        axes.set_xlabel("correlation of the codes of two layers")
        axes.set_ylim(0, 1.03)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"R² of the codes of {options.needed} layers")
    panels[0].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def ceiling(correlation, options):
    """R2 of the best weighted sum in one subspace, without noise."""
    return (1 + (options.needed - 1) * correlation) / options.needed


def main():
    """Train everything, print the means, write the CSV and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--code", type=int, default=3, help="d")
    parser.add_argument("--needed", type=int, default=2, help="m")
    parser.add_argument("--frames", type=int, default=128, help="per step")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--correlations",
        type=float,
        nargs="+",
        default=[0.0, 0.25, 0.5, 0.75, 1.0],
    )
    options = parser.parse_args()
    if options.channels < options.layers * options.code:
        parser.error("subspaces of their own need channels >= layers x code")
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    rows = []
    for subspace in SUBSPACES:
        for correlation in options.correlations:
            for seed in range(options.seeds):
                torch.manual_seed(seed)
                for name, (interface, probe) in make_systems(options).items():
                    # The same frames for every interface.
                    layers = Layers(
                        *(options, correlation, subspace),
                        torch.Generator().manual_seed(seed),
                    )
                    r2 = train(interface, probe, layers, options)
                    parameters = count(interface, probe)
                    rows.append(
                        (subspace, name, parameters, correlation, seed, r2)
                    )
                    print(*rows[-1], flush=True)
    columns = ["subspace", "interface", "parameters"]
    table = pd.DataFrame(rows, columns=[*columns, "correlation", "seed", "r2"])
    means = table.pivot_table("r2", columns, "correlation", sort=False)
    print(means.round(3).to_string())
    best = [ceiling(rho, options) for rho in options.correlations]
    print("best of all weighted sums, shared:", [round(r2, 3) for r2 in best])
    print(f"{time.perf_counter() - started:.0f} s")
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "information_collision.csv", index=False)
    draw(table, options).savefig(
        options.out / "information_collision.png", dpi=150
    )


if __name__ == "__main__":
    main()
