"""Every training scheme that has a block."""

from pathlib import Path

from hyperpyyaml import load_hyperpyyaml

ROOT = Path(__file__).parents[3]
BLOCKS = {
    path.stem: path for path in (ROOT / "hparams" / "objectives").glob("*.yaml")
}


def make_objective(name):
    """What recipes get of ``--objective <name>``, from the first step on."""
    text = f"objective: !include:{BLOCKS[name]}"
    objective = load_hyperpyyaml(text)["objective"]
    if hasattr(objective, "start"):
        objective.start = 0
    return objective
