"""What each layer brings to what is read out of an encoder.

Where an interface has learnt weights, those are told. Elsewhere layers are
taken away one at a time: what changes is what a layer brought that no other
could stand in for. The two are not the same: a weight says nothing of how large
a state is, nor whether another layer says the same.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from speechbrain_ee.analysis.plots import draw_contributions
from speechbrain_ee.analysis.report import save_picture
from speechbrain_ee.files import replacing
from speechbrain_ee.interfaces import LayerInterface


def layer_contributions(
    interface: LayerInterface, evaluate: Callable[[], float]
) -> pd.DataFrame:
    """Learnt weights where there are some, else ablations.

    Arguments
    ---------
    interface : LayerInterface
        Trained.
    evaluate : callable
        As for ``ablation_contributions``; not called where weights are learnt.

    Returns
    -------
    pandas.DataFrame
        Of weights, the columns ``layer`` (0 = front-end output) and
        ``contribution``; else as of ``ablation_contributions``.

    Example
    -------
    >>> from speechbrain_ee.interfaces import WeightedSum
    >>> layer_contributions(WeightedSum([8, 8]), evaluate=float)
       layer  contribution
    0      0           0.5
    1      1           0.5
    """
    weights = interface.layer_weights()
    if weights is None:
        return ablation_contributions(interface, evaluate)
    layers = range(len(weights))
    return pd.DataFrame({"layer": layers, "contribution": weights.tolist()})


def ablation_contributions(
    interface: LayerInterface, evaluate: Callable[[], float]
) -> pd.DataFrame:
    """How a metric changes when the state of one layer is zero-filled.

    Arguments
    ---------
    interface : LayerInterface
        Trained, and in evaluation mode.
    evaluate : callable
        The metric of the model that reads this interface, always on the same
        data; called L + 1 times.

    Returns
    -------
    pandas.DataFrame
        A row per state: ``layer`` (0 = front-end output), ``full`` (the metric
        with all states), ``without`` (with this one zero-filled) and
        ``contribution``, which is without - full: of an error rate or a loss,
        above zero where the layer helps.

    Example
    -------
    >>> import torch
    >>> from speechbrain_ee.interfaces import SingleLayer
    >>> states = [torch.ones(1, 2, 3)] * 3
    >>> interface = SingleLayer([3, 3, 3], layer=1)
    >>> ablation_contributions(
    ...     interface, lambda: 1 - interface(states).mean().item()
    ... )
       layer  full  without  contribution
    0      0   0.0      0.0           0.0
    1      1   0.0      1.0           1.0
    2      2   0.0      0.0           0.0
    """
    full = float(evaluate())
    rows = []
    for layer in range(len(interface.input_sizes)):
        with interface.without(layer):
            without = float(evaluate())
        rows.append((layer, full, without, without - full))
    columns = ["layer", "full", "without", "contribution"]
    return pd.DataFrame(rows, columns=columns)


def write_contributions(
    folder: str | Path, table: pd.DataFrame, metric: str = "loss"
) -> None:
    """Write ``layers.csv`` and ``layers.png``.

    Arguments
    ---------
    folder : str or Path
        Of the run.
    table : pandas.DataFrame
        As of ``layer_contributions``.
    metric : str
        What was evaluated, for the picture.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> table = pd.DataFrame({"layer": [0, 1], "contribution": [0.2, 0.8]})
    >>> write_contributions(folder, table)
    >>> sorted(path.name for path in folder.iterdir())
    ['layers.csv', 'layers.png']
    """
    folder = Path(folder)
    with replacing(folder / "layers.csv") as file:
        table.to_csv(file, index=False)
    save_picture(folder, "layers", draw_contributions(table, metric))
