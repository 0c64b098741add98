"""Run a recipe once, for the scripts that train a grid of models.

Authors
 * SpeechBrain-EE contributors 2026
"""

import os
import subprocess
import sys


def run_recipe(folder, output, script, hparams_file, *overrides):
    """Train and evaluate a model, unless that is done.

    Arguments
    ---------
    folder : Path
        Of the recipe.
    output : Path
        Folder of the run, below the recipe's; what it prints goes into
        ``console.txt`` there.
    script : str
        From the recipe's folder.
    hparams_file : str
        From the recipe's folder.
    *overrides : str
        Of the command line.

    Returns
    -------
    bool
        Whether it is done.
    """
    if (output / "report.md").is_file():
        return True
    output.mkdir(parents=True, exist_ok=True)
    with open(output / "console.txt", "a", encoding="utf-8") as console:
        done = subprocess.run(
            [
                *(sys.executable, script, hparams_file, *overrides),
                f"--output_folder={output}",
                *("--num_workers=0", "--noprogressbar"),
            ],
            cwd=folder,
            # More threads than processes slow each other down.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=console,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        print(f"{output}: failed, see console.txt there", flush=True)
    else:
        print(f"{output}: done", flush=True)
    return done.returncode == 0
