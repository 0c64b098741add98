"""Corpora, and a recipe's run on them."""

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ee.corpora.esc import make_esc
from speechbrain_ee.corpora.librilight import make_librilight
from speechbrain_ee.corpora.librimix import make_librimix
from speechbrain_ee.corpora.librispeech import make_librispeech
from speechbrain_ee.corpora.mlsuperb import make_mlsuperb
from speechbrain_ee.corpora.tedlium import make_tedlium
from speechbrain_ee.corpora.utterances import make_utterances
from speechbrain_ee.corpora.voicebank import make_voicebank
from speechbrain_ee.corpora.voxceleb import make_voxceleb
from speechbrain_ee.corpora.voxpopuli import make_voxpopuli
from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
from speechbrain_ee.feature_cache import describe_upstream
from speechbrain_ee.heads import ClusterBranches, save_branches
from tests.integration.recipes import LM, ROWS, SPLITS, check, run, trains
from tests.unit.encoders.backbones import save_pretrained


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder whose ``models`` are small ones in Hugging Face format."""
    folder = tmp_path_factory.mktemp("corpora")
    for kind in ("wav2vec2", "hubert", "wavlm"):
        path = folder / "models" / kind
        save_pretrained(path, kind, num_hidden_layers=4)
    # One with a branch behind each layer.
    path = folder / "models" / "hubert-6"
    save_pretrained(path, "hubert", num_hidden_layers=6)
    upstream = HuggingFaceEncoder(str(path), freeze=True)
    branches = ClusterBranches(range(1, 7), upstream.output_size, 8)
    for weight in branches.parameters():  # else all clusters are as likely
        torch.nn.init.normal_(weight)
    facts = {"upstream": describe_upstream(upstream)}
    save_branches(folder / "branches", branches, facts)
    # In the order of most models for English.
    vocab = ["<pad>", "<s>", "</s>", "<unk>", *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
    path = folder / "models" / "wav2vec2-ctc"
    save_pretrained(path, "wav2vec2", vocab, num_hidden_layers=4)
    return folder


@pytest.fixture(scope="session")
def corpora(models):
    """The same with a small corpus of every dataset, in its real layout."""
    folder = models
    make_librispeech(folder / "LibriSpeech", SPLITS)
    make_tedlium(folder / "TEDLIUM_release-3", SPLITS)
    make_voxpopuli(folder / "VoxPopuli", SPLITS)
    # Speech without labels: the test split of LibriSpeech once more.
    with open(folder / "extra.csv", "w", encoding="utf-8") as file:
        file.write("ID,duration,wav\n")
        for path in sorted((folder / "LibriSpeech").glob("test/*/*/*.flac")):
            file.write(f"{path.stem},{soundfile.info(path).duration},{path}\n")
    few = {"train": 3, "dev": 1, "test": 1}  # of each language and dataset
    make_mlsuperb(folder / "ML-SUPERB", few)
    make_utterances(folder / "utterances")
    make_esc(folder / "ESC-50", folds=3)
    make_noise(folder / "musan")
    make_librilight(folder / "LibriLight", 1, dev=2, test=2)
    make_voxceleb(folder / "VoxCeleb1", 3)
    make_voicebank(folder / "VoiceBank")
    make_librimix(folder / "Libri2Mix")
    return folder


def make_noise(folder):
    """Some noise in the layout of MUSAN."""
    rng = np.random.default_rng(0)
    for kind, samples in {"noise": 32000, "music": 16000}.items():
        place = folder / kind / "free-sound"
        place.mkdir(parents=True)
        wave = 0.1 * rng.standard_normal(samples)
        soundfile.write(place / f"{kind}-free-sound-0000.wav", wave, 16000)


@pytest.fixture(scope="session")
def trained(corpora, tmp_path_factory):
    """The folder of a training and its row, not to be changed."""
    row = next(row for row in ROWS if trains(row))
    folder = tmp_path_factory.mktemp("trained")
    check(run(row, corpora, folder))
    return folder, row


@pytest.fixture(scope="session")
def teacher(corpora, trained):
    """That training once more, where rows that learn from it look for it."""
    folder = corpora / "teacher"
    folder.symlink_to(trained[0])
    return folder


@pytest.fixture(scope="session")
def language_model(corpora):
    """The folder of a language model, where rows look for it."""
    row = next(row for row in ROWS if row["Task"] == "LM")
    folder = corpora / LM.split("/")[-1]
    check(run(row, corpora, folder, "--number_of_epochs=2"))
    return folder
