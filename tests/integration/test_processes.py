"""Two processes train what one does with the same global batches."""

import subprocess
import sys

import pytest
import torch

from tests.integration.processes import CASES, GATE, MODELS
from tests.integration.recipes import ROOT, check

# One worker, so that all is trained once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]

SCRIPT = ("-m", "tests.integration.processes")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """All cases, as one process and as each of two have trained them."""
    folder = tmp_path_factory.mktemp("processes")
    for launcher in ((), TORCHRUN):
        command = [sys.executable, *launcher, *SCRIPT, folder]
        check(subprocess.run(command, cwd=ROOT, capture_output=True, text=True))
    return {
        path.stem: torch.load(path, weights_only=True)
        for path in folder.glob("*.pt")
    }


@pytest.mark.parametrize(("model", "scheme"), CASES)
def test_two_processes_end_with_the_parameters_of_one(model, scheme, trained):
    case = model, scheme
    alone = trained["0_of_1"][case]
    moved = torch.stack(
        [
            (after - before).abs().max()
            for before, after in zip(
                alone["before"].values(), alone["after"].values()
            )
        ]
    )
    assert moved.max() > 1e-2
    for rank in range(2):
        shared = trained[f"{rank}_of_2"][case]
        torch.testing.assert_close(
            shared["before"], alone["before"], rtol=0, atol=0
        )
        torch.testing.assert_close(
            shared["after"], alone["after"], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("model", MODELS)
def test_no_two_schemes_end_with_the_same_parameters(model, trained):
    ends = [
        torch.cat([p.flatten() for p in done["after"].values()])
        for case, done in trained["0_of_1"].items()
        if case[0] == model and not case[1].startswith(GATE)
    ]
    for k, one in enumerate(ends):
        for other in ends[:k]:
            assert (one - other).abs().max() > 1e-4
