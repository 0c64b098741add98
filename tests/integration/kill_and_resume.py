#!/usr/bin/env python3
"""Kill a training again and again: it must end as if nothing had happened.

A small recogniser is trained twice with the same command: once in peace, and
once killed (SIGKILL) at many moments, half of them while a checkpoint is being
written. Every restart must go on from the newest checkpoint, lose no more than
the steps between two checkpoints, and in the end all saved states and the train
log must equal those of the first run bit for bit.

> python tests/integration/kill_and_resume.py --kills 20

Authors
 * SpeechBrain-EE contributors 2026
"""

import argparse
import contextlib
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "LibriSpeech"
INTERVAL = 3  # steps between checkpoints
WHERE = ("while saving", "at the start", "while saving", "at a step")
# Small, with nothing that draws random numbers after the first batch.
SETTINGS = (
    "--train_splits=[train]",
    "--valid_split=dev",
    "--test_splits=[test]",
    "--num_layers=4",
    "--exit_layers=[2, 4]",
    "--d_model=32",
    "--dropout=0.0",
    "--augment_prob=0.0",
    "--warmup_steps=10",
    "--total_steps=200",
    "--averaged_checkpoints=2",
    "--dynamic_batch_sampler={max_batch_length: 7}",
    "--scores=[entropy]",
    "--calibrate={scores: [entropy]}",
    "--train_logger={precision: 12}",
    f"--ckpt_interval_steps={INTERVAL}",
    "--device=cpu",
    "--noprogressbar",
)


def train(steps_file, script, *arguments):
    """Run a recipe in this process, noting every step that it has done.

    Arguments
    ---------
    steps_file : str
        Gets the number of each step.
    script : str
        The recipe.
    *arguments : str
        Its own.
    """
    from speechbrain_ee.brains import EarlyExitCTC

    fit_batch = EarlyExitCTC.fit_batch

    def noting(self, batch):
        loss = fit_batch(self, batch)
        print(self.optimizer_step, file=steps, flush=True)
        return loss

    EarlyExitCTC.fit_batch = noting
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    with open(steps_file, "w") as steps:
        runpy.run_path(script, run_name="__main__")


class Attempt:
    """One process of a run, from its start to its end or its killing.

    Arguments
    ---------
    command : list of str
        Script, YAML and overrides.
    folder : Path
        The output folder of the run.
    name : str
        Of this process, for its files.
    """

    def __init__(self, command, folder, name):
        self.save = folder / "save"
        self.saved = step_of(newest_checkpoint(self.save))
        self.leftovers = self.partial()
        self.steps_file = folder.with_name(f"{name}.steps")
        self.log = folder.with_name(f"{name}.log")
        self.started = time.monotonic()
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--train", self.steps_file, *command]
                + [f"--output_folder={folder}"],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    def partial(self):
        """Names of checkpoints that are being written."""
        return {path.name for path in self.save.glob(".partial-CKPT*")}

    def steps(self):
        """Steps done so far."""
        if not self.steps_file.exists():
            return []
        return [int(line) for line in self.steps_file.read_text().split()]

    def wait_until(self, reached, seconds=300):
        """Return as soon as a condition holds.

        Arguments
        ---------
        reached : callable
            The condition.
        seconds : float
            How long to wait at most.
        """
        while not reached():
            if self.process.poll() is not None:
                self.fail("ended before it could be killed; give more --epochs")
            if time.monotonic() - self.started > seconds:
                self.fail(f"did not get there in {seconds} s")
            time.sleep(0.0005)

    def finish(self):
        """Let it run to its end."""
        if self.process.wait() != 0:
            self.fail("failed")

    def kill(self):
        """Kill it."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def fail(self, what):
        """Give up, with the end of what it wrote.

        Arguments
        ---------
        what : str
            It did.
        """
        if self.process.poll() is None:
            self.kill()
        end = self.log.read_text()[-3000:]
        sys.exit(f"{end}\nFAILED: {self.log.stem} {what}.")


def newest_checkpoint(save):
    """The folder of the last checkpoint, as any reader would choose it.

    Arguments
    ---------
    save : Path
        Holds the checkpoints.

    Returns
    -------
    Path
        None if there are none.
    """
    found = {}
    for meta_file in save.glob("CKPT*/CKPT.yaml"):
        meta = yaml.safe_load(meta_file.read_text())
        found[meta["unixtime"]] = meta_file.parent
    return found[max(found)] if found else None


def step_of(checkpoint):
    """The number of steps that a checkpoint holds.

    Arguments
    ---------
    checkpoint : Path
        Its folder, or None.

    Returns
    -------
    int
        0 without a checkpoint.
    """
    if checkpoint is None:
        return 0
    return yaml.safe_load((checkpoint / "brain.ckpt").read_text())[
        "optimizer_step"
    ]


def kill_often(command, folder, kinds, rng, total, start, step):
    """Run a training, killing it again and again, to its end.

    Arguments
    ---------
    command : list of str
        Script, YAML and overrides.
    folder : Path
        The output folder.
    kinds : list of str
        Where each kill falls.
    rng : random.Random
        Draws the moments.
    total : int
        Steps of the whole run; the kills are spread over it.
    start : float
        Seconds to the first step.
    step : float
        Seconds of a step.

    Returns
    -------
    list of str
        What went wrong.
    """
    faults, reached, in_saving = [], 0, 0
    print(f"{'kill':12}{'where':16}{'saved':>6}{'first':>6}{'last':>6}  lost")
    for number, where in enumerate([*kinds, "end"], 1):
        attempt = Attempt(command, folder, f"attempt_{number}")
        if where == "end":
            attempt.finish()
        else:
            target = total * number // (len(kinds) + 1)
            target += rng.randint(-INTERVAL, INTERVAL)
            target = max(target, attempt.saved + 1)
            kill_somewhere(attempt, where, target, rng, start, step)
        steps = attempt.steps()
        cut = attempt.partial() - attempt.leftovers
        in_saving += bool(cut)
        lost = reached - attempt.saved
        row = f"{number:<12}{where:16}{attempt.saved:>6}"
        if steps:
            row += f"{steps[0]:>6}{steps[-1]:>6}{lost:>6}"
        print(row + ("  a checkpoint was cut" if cut else ""), flush=True)

        if steps and steps != list(range(attempt.saved + 1, steps[-1] + 1)):
            faults.append(f"{number}: did not go on from step {attempt.saved}")
        if not 0 <= lost <= INTERVAL:
            faults.append(f"{number}: {lost} steps were lost")
        reached = steps[-1] if steps else attempt.saved
    least = kinds.count("while saving") // 2
    print(f"{in_saving} kills cut a checkpoint that was being written.")
    if in_saving < least:
        faults.append(f"only {in_saving} kills fell into saving, not {least}")
    return faults


def kill_somewhere(attempt, where, target, rng, start, step):
    """Kill a process at a moment of some kind.

    Arguments
    ---------
    attempt : Attempt
        The process.
    where : str
        One of ``WHERE``.
    target : int
        The step after which it is killed, unless it is killed at the start.
    rng : random.Random
        Draws the moment.
    start : float
        Seconds to the first step.
    step : float
        Seconds of a step.
    """
    if where == "at the start":
        time.sleep(rng.uniform(0, start))
    else:
        attempt.wait_until(lambda: attempt.steps()[-1:] >= [target])
    if where == "at a step":
        time.sleep(rng.uniform(0, step))
    if where == "while saving":
        attempt.wait_until(lambda: attempt.partial() - attempt.leftovers)
        time.sleep(rng.uniform(0, 0.01))
    attempt.kill()


def differences(peaceful, killed):
    """What the last checkpoints and the train logs of two runs differ in.

    Arguments
    ---------
    peaceful : Path
        Output folder of the run that nobody killed.
    killed : Path
        That of the other.

    Returns
    -------
    list of str
        Empty if there is no difference.
    """
    found = []
    folders = [newest_checkpoint(run / "save") for run in (peaceful, killed)]
    names = [{path.name for path in one.glob("*.ckpt")} for one in folders]
    if names[0] != names[1]:
        found.append(f"files of the last checkpoint: {names[0] ^ names[1]}")
    for name in sorted(names[0] & names[1]):
        if not same(*(folder / name for folder in folders)):
            found.append(f"{name} of the last checkpoint")
    logs = [figures(run / "train_log.txt") for run in (peaceful, killed)]
    if logs[0] != logs[1]:
        found.append("the train log")
    return found


def same(one, other):
    """Whether two files of checkpoints hold the same values.

    Arguments
    ---------
    one : Path
        A file.
    other : Path
        Another.

    Returns
    -------
    bool
        True if they are equal bit for bit.
    """
    import torch

    if one.read_bytes()[:2] != b"PK":  # not of torch.save
        return one.read_bytes() == other.read_bytes()
    values = [torch.load(path, weights_only=True) for path in (one, other)]
    try:
        torch.testing.assert_close(*values, rtol=0, atol=0, equal_nan=True)
    except AssertionError:
        return False
    return True


def figures(train_log):
    """The lines of a train log that do not tell a time.

    A run killed between the line of an epoch and its checkpoint writes the same
    line again.

    Arguments
    ---------
    train_log : Path
        As SpeechBrain writes it.

    Returns
    -------
    list of str
        Each once, in the order of the first time.
    """
    lines = train_log.read_text().splitlines()
    return list(dict.fromkeys(line for line in lines if "seconds" not in line))


def main():
    """Compare the two runs and print what happened."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, help="enough for the kills")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--folder", help="kept; else a temporary one")
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = asked.folder or stack.enter_context(
            tempfile.TemporaryDirectory()
        )
        faults = compare(Path(folder).resolve(), asked)
    if faults:
        sys.exit("FAILED: " + "; ".join(faults) + ".")
    print("The run that was killed equals the other bit for bit.")


def compare(folder, asked):
    """Train twice, once killed.

    Arguments
    ---------
    folder : Path
        For the corpus and the runs.
    asked : argparse.Namespace
        kills, epochs and seed.

    Returns
    -------
    list of str
        What went wrong.
    """
    from speechbrain_ee.corpora.librispeech import make_librispeech

    corpus = folder / "corpus"
    if not corpus.exists():
        make_librispeech(corpus, {"train": 24, "dev": 3, "test": 3})
    command = [
        str(RECIPE / "train.py"),
        str(RECIPE / "hparams" / "conformer_ctc_ee_small.yaml"),
        f"--data_folder={corpus}",
        f"--number_of_epochs={asked.epochs or 2 + asked.kills // 5}",
        *SETTINGS,
    ]
    peaceful = Attempt(command, folder / "peaceful", "peaceful")
    peaceful.wait_until(peaceful.steps)
    start = time.monotonic() - peaceful.started
    peaceful.finish()
    steps = len(peaceful.steps())
    both = time.monotonic() - peaceful.started
    print(
        f"In peace: {steps} steps in {both:.0f} s, the first at {start:.0f} s"
    )

    rng = random.Random(asked.seed)
    kinds = [WHERE[k % len(WHERE)] for k in range(asked.kills)]
    rng.shuffle(kinds)
    step = (both - start) / steps
    killed = folder / "killed"
    faults = kill_often(command, killed, kinds, rng, steps, start, step)
    found = differences(folder / "peaceful", killed)
    return [*faults, *(f"{one} differs" for one in found)]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(*sys.argv[2:])
    else:
        main()
