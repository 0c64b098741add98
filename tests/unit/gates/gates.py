"""One gate of every kind, for encoders with four layers."""

from speechbrain_ee.gates import (
    BernoulliGate,
    FirstN,
    FixedMask,
    GreedyMasks,
    InputConditionedGate,
    RandomN,
    RunAll,
)


def greedy(**options):
    """One whose masks have been found, by the worth of each layer."""

    class Found(GreedyMasks):
        """Searches as soon as it knows how many layers there are."""

        def build(self):
            """Layer 1 is worth 1, layer 2 is worth 2, …"""
            super().build()
            self.search(
                lambda: -sum(k for k, on in enumerate(self.trial, 1) if on)
            )

    return Found(**options)


def selector(**options):
    """A small one."""
    return InputConditionedGate(**{"hidden_size": 8, **options})


# What makes it, by its name in the registry and what is special about it.
ROWS = {
    "all": RunAll,
    "fixed mask": lambda: FixedMask(mask=[1, 0, 0, 1]),
    "fixed text": lambda: FixedMask(mask="0111"),
    "fixed every": lambda: FixedMask(every=2),
    "fixed none": lambda: FixedMask(mask="0000", closing_norm=True),
    "first_n": lambda: FirstN(target_layers=2.5),
    "greedy": lambda: greedy(target_layers=2),
    "random_n": lambda: RandomN(target_layers=2.5),
    "random batch": lambda: BernoulliGate(p=0.5, target_layers=1),
    "random utterance": lambda: BernoulliGate(
        p=0.5, draw="utterance", rising=True, target_layers=2
    ),
    "random ldasr": lambda: BernoulliGate(
        p=0.5, closing_norm=True, target_layers=2
    ),
    "input_conditioned statistics": lambda: selector(target_layers=2.5),
    "input_conditioned recurrent": lambda: selector(
        summary="recurrent",
        estimator="straight_through",
        balance_weight=0.1,
        target_layers=3,
    ),
    "input_conditioned attention": lambda: selector(
        summary="attention",
        train_targets={"lowest": 0.5, "highest": 4},
        draw_targets="batch",
        closing_norm=True,
        target_layers=2,
    ),
    "input_conditioned dependent": lambda: selector(
        draw_targets="batch", dependence_weight=0.5, target_layers=2.5
    ),
    "input_conditioned layerwise": lambda: selector(
        decides="layer_by_layer", balance_weight=0.1, target_layers=2.5
    ),
}
SERVING = [
    row
    for row in ROWS
    if row.split()[0] not in ("all", "fixed") and "layerwise" not in row
]
LEARNED = [row for row in ROWS if row.startswith("input_conditioned")]
