"""Corpora, and a recipe's run on them."""

import pytest

from speechbrain_ee.corpora.librispeech import make_librispeech
from speechbrain_ee.corpora.tedlium import make_tedlium
from speechbrain_ee.corpora.voxpopuli import make_voxpopuli
from tests.integration.recipes import LM, ROWS, SPLITS, check, run, trains


@pytest.fixture(scope="session")
def corpora(tmp_path_factory):
    """A folder with a small corpus of every dataset, in its real layout."""
    folder = tmp_path_factory.mktemp("corpora")
    make_librispeech(folder / "LibriSpeech", SPLITS)
    make_tedlium(folder / "TEDLIUM_release-3", SPLITS)
    make_voxpopuli(folder / "VoxPopuli", SPLITS)
    return folder


@pytest.fixture(scope="session")
def trained(corpora, tmp_path_factory):
    """The folder of a training and its row, not to be changed."""
    row = next(row for row in ROWS if trains(row))
    folder = tmp_path_factory.mktemp("trained")
    check(run(row, corpora, folder))
    return folder, row


@pytest.fixture(scope="session")
def language_model(corpora):
    """The folder of a language model, where rows look for it."""
    row = next(row for row in ROWS if row["Task"] == "LM")
    folder = corpora / LM.split("/")[-1]
    check(run(row, corpora, folder, "--number_of_epochs=2"))
    return folder
