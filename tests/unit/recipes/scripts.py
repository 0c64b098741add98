"""Scripts of the recipes, which import what stands beside them."""

import runpy
import sys
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[3]


def load_script(name):
    """What a script defines, without running its main."""
    path = ROOT / name
    with patch.object(sys, "path", [str(path.parent), *sys.path]):
        return runpy.run_path(str(path))
