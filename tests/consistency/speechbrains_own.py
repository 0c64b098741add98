#!/usr/bin/env python3
"""Run SpeechBrain's own consistency tests, unmodified, on this tree.

Only a clone or the source distributions 1.0.1 and 1.0.2 hold them. To run:

> git clone --depth 1 https://github.com/speechbrain/speechbrain
> python tests/consistency/speechbrains_own.py speechbrain

Authors
 * SpeechBrain-EE contributors 2026
"""

import os
import sys
from pathlib import Path

import speechbrain.core
from speechbrain.utils.run_opts import RunOptions


def main(clone):
    """Run them all.

    Arguments
    ---------
    clone : str
        Where SpeechBrain was cloned or unpacked.

    Returns
    -------
    int
        0 if all hold.
    """
    sys.path.insert(0, os.path.abspath(clone))
    os.chdir(Path(__file__).parents[2])
    if not hasattr(speechbrain.core, "run_opt_defaults"):
        # Where SpeechBrain 1.0 looks for them.
        speechbrain.core.run_opt_defaults = RunOptions().as_dict()
    from tests.consistency import test_recipe, test_yaml
    from tests.utils.check_docstrings import check_docstrings

    failed = []
    for module in (test_recipe, test_yaml):
        for name in [x for x in vars(module) if x.startswith("test_")]:
            try:
                getattr(module, name)()
            except AssertionError:
                failed.append(name)
    if not check_docstrings(".", ["./speechbrain_ee/"]):
        failed.append("check_docstrings")
    print("All hold." if not failed else f"Failed: {', '.join(failed)}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
