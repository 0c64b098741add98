"""Test sets in noise, mixed while they are read.

The noise is that of MUSAN (arXiv 1510.08484), or of any folder. Which file an
utterance gets, and which piece of it, depends on the seed and the utterance's
ID alone: at every signal-to-noise ratio it is the same noise, only louder.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from scipy.signal import resample_poly
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_pipeline import DynamicItem
from speechbrain.utils.logger import get_logger

from speechbrain_ee.analysis.conditions import CLEAN, in_noise
from speechbrain_ee.analysis.verification import Trial
from speechbrain_ee.corpora.noise import LEVELS, mix
from speechbrain_ee.encoders.base import SAMPLE_RATE
from speechbrain_ee.feature_cache import MIXED_WITH

logger = get_logger(__name__)

AUDIO = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff")
# Of full scale, -80 dB: below it there is little more than rounding.
SILENT = 1e-4
DRAWS = 20  # of pieces of an utterance, until one is not silent
WITHOUT_NOISE = "sig_without_noise"  # the item that is mixed


class _File(NamedTuple):
    """A file of noise."""

    name: str
    path: Path
    frames: int
    sample_rate: int
    bytes: int
    modified: int


class NoiseFolder:
    """Noise from audio files, the same for an utterance wherever it stands.

    Files are drawn with equal chances; then comes a piece as long as the
    utterance, from any place. A file that is shorter than the utterance is
    repeated without a gap, from any place on. What is not sampled at 16 kHz is
    resampled, and channels are averaged. Silent pieces (below -80 dB of full
    scale) are drawn again. Files that are silent, too short or unreadable are
    left out with a warning that counts and names them.

    Arguments
    ---------
    source : str, Path or sequence of these
        A folder, such as that of MUSAN, with audio files at any depth, or
        files and folders.
    seed : int
        Another one gives every utterance other noise.
    categories : sequence of str, optional
        Take these folders of ``source`` only, of MUSAN's ``noise``, ``music``
        and ``speech``.
    min_seconds : float
        Shorter files are left out.
    level : str
        What the level of speech is in a signal-to-noise ratio: ``active``,
        without its pauses (see ``corpora.noise.active_level``), or ``plain``,
        with them. That of noise is the root mean square of the piece.

    Raises
    ------
    FileNotFoundError
        If a folder or file does not exist.
    ValueError
        If no noise is left, or ``level`` is unknown.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "rain").mkdir()
    >>> soundfile.write(
    ...     folder / "rain" / "a.wav", np.tile([0.5, -0.5], 20000), 16000
    ... )
    >>> noise = NoiseFolder(folder)
    >>> len(noise), noise.piece("utterance-1", samples=8000).shape
    (1, (8000,))
    >>> mixed = noise.mix(torch.full((8000,), 0.1), 20, "utterance-1")
    >>> mixed.unique()
    tensor([0.0900, 0.1100])
    """

    def __init__(
        self,
        source: str | Path | Sequence[str | Path],
        seed: int = 0,
        categories: Sequence[str] | None = None,
        min_seconds: float = 1.0,
        level: str = "active",
    ):
        if level not in LEVELS:
            raise ValueError(f"level: {level!r} is none of {', '.join(LEVELS)}")
        self.seed = seed
        self.level = level
        found = _find_files(source, categories)
        with ThreadPoolExecutor() as pool:
            looks = list(
                pool.map(lambda one: _look(*one, min_seconds), found.items())
            )
        #: The files that are used, by their names.
        self.files = [x for x in looks if isinstance(x, _File)]
        #: Names of the others, and why they are not.
        self.left_out = {
            name: look
            for name, look in zip(found, looks, strict=True)
            if not isinstance(look, _File)
        }
        where = source if isinstance(source, (str, Path)) else "the list"
        if self.left_out:
            told = [f"{k} ({why})" for k, why in self.left_out.items()]
            text = (
                f"{len(told)} of {len(found)} files of noise in {where} cannot "
                f"be used: {', '.join(told[:5])}{', …' if told[5:] else ''}"
            )
            if not self.files:
                raise ValueError(
                    f"{text}. Give noise of {min_seconds:g} s and longer."
                )
            logger.warning(f"{text}. They are left out.")
        seconds = sum(x.frames / x.sample_rate for x in self.files)
        logger.info(
            f"Noise: {len(self.files)} files in {where}, {seconds / 60:.1f} min"
        )

    def __len__(self) -> int:
        """The number of files that are used."""
        return len(self.files)

    @property
    def fingerprint(self) -> str:
        """What decides which noise an utterance gets, and its level.

        Returns
        -------
        str
            Changes with the files, the seed and the definition of the level.
        """
        facts = [
            self.seed,
            self.level,
            *(x._replace(path="") for x in self.files),
        ]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def piece(self, utterance: str, samples: int) -> np.ndarray:
        """The noise of an utterance.

        Arguments
        ---------
        utterance : str
            Its ID, without that of a signal-to-noise ratio.
        samples : int
            How long it is, at 16 kHz.

        Returns
        -------
        numpy.ndarray
            Of shape (samples,), as loud as in the file.

        Raises
        ------
        ValueError
            If ``DRAWS`` pieces are silent.
        """
        for draw in range(DRAWS):
            # Not NumPy's generator, whose draws may change with its version.
            text = f"{self.seed}/{draw}/{utterance}".encode()
            digest = hashlib.sha256(text).digest()
            which, where = (
                int.from_bytes(part, "big") for part in (digest[:8], digest[8:])
            )
            piece = _read(self.files[which % len(self)], where, samples)
            if np.sqrt((piece**2).mean()) >= SILENT:
                return piece
        raise ValueError(
            f"{utterance}: {DRAWS} pieces of noise were silent. Take out files "
            "that are silent for the most part."
        )

    def mix(
        self, speech: torch.Tensor, snr: float, utterance: str
    ) -> torch.Tensor:
        """Speech in its noise.

        Arguments
        ---------
        speech : torch.Tensor
            Of shape (samples,), at 16 kHz.
        snr : float
            Signal-to-noise ratio in dB.
        utterance : str
            The ID of the speech.

        Returns
        -------
        torch.Tensor
            Of the same shape and dtype. It may go beyond 1 and is not clipped.

        Raises
        ------
        ValueError
            If the speech is silent.
        """
        wave = speech.numpy().astype(float)
        noise = self.piece(utterance, len(wave))
        try:
            mixed = mix(wave, noise, snr, SAMPLE_RATE, self.level)
        except ValueError as error:
            raise ValueError(
                f"{utterance}: silence has no signal-to-noise ratio. {error} "
                "Take its row out of the CSV."
            ) from error
        return torch.from_numpy(mixed).to(speech.dtype)


def noisy_sets(
    tests: Mapping[str, DynamicItemDataset],
    noise: NoiseFolder,
    snrs: Sequence[float | None],
) -> dict[str, DynamicItemDataset]:
    """Each test set at each signal-to-noise ratio.

    In noise, ``sig`` is mixed whenever it is read, and IDs end like the name of
    the set, so that a cache of features keeps the conditions apart. Rows have
    ``snr`` (such as "5", or "clean"), a grouping column for the traces.

    Arguments
    ---------
    tests : mapping
        Name to dataset, with ``sig``.
    noise : NoiseFolder
        The noise.
    snrs : sequence of float or None
        In dB; None is clean speech.

    Returns
    -------
    dict
        ``<set>_clean``, ``<set>_snr20`` … to dataset, in the order of the sets
        and of ``snrs``, with the output keys that the sets have.

    Raises
    ------
    ValueError
        If ``snrs`` are none, not finite numbers, or the same twice; if a set is
        in noise already; or if an utterance is silent (all are read once).
    """
    snrs = _check_snrs(snrs)
    for name, dataset in tests.items():
        _check_set(name, dataset)
        if any(snr is not None for snr in snrs):
            _check_speech(name, dataset, noise.level)
    return {
        in_noise(name, snr): _mixed(dataset, noise, snr)
        for name, dataset in tests.items()
        for snr in snrs
    }


def noisy_trials(
    trials: Mapping[str, Sequence[Trial]],
    tests: Iterable[str],
    snrs: Sequence[float | None],
) -> dict[str, list[Trial]]:
    """The trials of sets in noise: both utterances are in it.

    Arguments
    ---------
    trials : mapping
        Trials by the name of a set.
    tests : iterable of str
        The sets that ``noisy_sets`` is called with.
    snrs : sequence of float or None
        As for ``noisy_sets``.

    Returns
    -------
    dict
        Trials by the names that ``noisy_sets`` gives.

    Example
    -------
    >>> trials = {"test": [Trial(True, "a", "b")]}
    >>> noisy_trials(trials, ["test"], [5])
    {'test_snr5': [Trial(same=True, enrol='a_snr5', test='b_snr5')]}
    """

    def renamed(trial, snr):
        """The same of utterances in noise."""
        names = (trial.enrol, trial.test)
        if snr is None:
            return trial
        return Trial(trial.same, *(in_noise(name, snr) for name in names))

    return {
        in_noise(name, snr): [renamed(trial, snr) for trial in trials[name]]
        for name in tests
        for snr in _check_snrs(snrs)
    }


def _find_files(source, categories) -> dict[str, Path]:
    """Audio files by their names, in an order that no disk decides."""
    roots = [source] if isinstance(source, (str, Path)) else list(source)
    if not roots:
        raise ValueError("noise: the list of folders and files is empty.")
    found = {}
    for root in map(Path, roots):
        if root.is_file():
            found[root.name if len(roots) == 1 else str(root)] = root
            continue
        if not root.is_dir():
            raise FileNotFoundError(
                f"There is no folder or file {root}: give one with noise, such "
                "as that of MUSAN (https://www.openslr.org/17)."
            )
        folders = [root] if categories is None else _folders(root, categories)
        for path in (x for folder in folders for x in folder.rglob("*")):
            hidden = path.name.startswith(".")
            if path.suffix.lower() in AUDIO and not hidden and path.is_file():
                name = path.relative_to(root).as_posix()
                found[name if len(roots) == 1 else f"{root}/{name}"] = path
    if not found:
        raise ValueError(
            f"There is no audio file ({', '.join(AUDIO)}) in "
            f"{', '.join(map(str, roots))}."
        )
    return dict(sorted(found.items()))


def _folders(root, categories) -> list[Path]:
    """The folders of categories."""
    missing = [x for x in categories if not (root / x).is_dir()]
    if missing:
        there = sorted(x.name for x in root.iterdir() if x.is_dir())
        raise FileNotFoundError(
            f"{root} has no folder {', '.join(missing)}; it has "
            f"{', '.join(there) or 'none'}."
        )
    return [root / x for x in dict.fromkeys(categories)]


def _look(name, path, min_seconds) -> _File | str:
    """A file, or why it cannot be used."""
    try:
        with soundfile.SoundFile(path) as file:
            frames, rate = file.frames, file.samplerate
            if frames < max(1, min_seconds * rate):
                return f"{frames / rate:.2f} s long"
            # Most files are heard in their first second.
            blocks = file.blocks(rate, dtype="float32", always_2d=True)
            levels = (np.sqrt((x.mean(axis=1) ** 2).mean()) for x in blocks)
            if not any(level >= SILENT for level in levels):
                return "silent"
    except soundfile.LibsndfileError as error:
        return error.error_string.rstrip(".") or "no audio"
    stat = path.stat()
    return _File(name, path, frames, rate, stat.st_size, stat.st_mtime_ns)


def _read(file: _File, where: int, samples: int) -> np.ndarray:
    """A piece of a file, of 16 kHz; ``where`` is any large number."""
    divisor = math.gcd(SAMPLE_RATE, file.sample_rate)
    up, down = SAMPLE_RATE // divisor, file.sample_rate // divisor
    needed = -(-samples * down // up)
    short = file.frames < needed
    start = where % (file.frames if short else file.frames - needed + 1)
    wave, _ = soundfile.read(
        file.path,
        frames=-1 if short else needed,
        start=0 if short else start,
        always_2d=True,
    )
    wave = wave.mean(axis=1)
    if short:
        wave = np.roll(wave, -start)
    if len(wave) < needed:  # as is what is left of a file that was cut off
        wave = np.resize(wave, needed)
    if up != down:
        wave = resample_poly(wave, up, down)
    return wave[:samples]


def _check_snrs(snrs) -> list[float | None]:
    """The same as a list, or an error."""
    if isinstance(snrs, str) or not isinstance(snrs, Iterable):
        raise ValueError(f"snrs: {snrs!r} is no list such as [null, 20, 10].")
    snrs = list(snrs)
    wrong = [
        x
        for x in snrs
        if x is not None
        and (
            isinstance(x, bool)
            or not isinstance(x, (int, float))
            or not math.isfinite(x)
        )
    ]
    if wrong or not snrs:
        what = f"{wrong[0]!r} is no number of dB" if wrong else "there is none"
        raise ValueError(
            f"snrs: {what}. Give some such as 20, and null for clean speech."
        )
    names = [in_noise("", snr) for snr in snrs]
    twice = [snr for snr, x in zip(snrs, names) if names.count(x) > 1]
    if twice:
        raise ValueError(f"snrs: {twice[0]} stands there twice.")
    return snrs


def _check_set(name, dataset) -> None:
    """Raise if a set cannot be put in noise."""
    if not any(
        "sig" in item.provides for item in dataset.pipeline.dynamic_items
    ):
        raise ValueError(
            f"{name} has no item sig that noise could be added to."
        )
    known = {row.get("snr") or CLEAN for row in dataset.data.values()}
    if known != {CLEAN}:
        levels = ", ".join(sorted(map(str, known)))
        raise ValueError(
            f"{name} is in noise already: its column snr says {levels}. Give "
            "clean speech, or no noise."
        )


def _check_speech(name, dataset, level) -> None:
    """Raise, before hours are spent, if an utterance is silent."""
    logger.info(f"{name}: looking for silent utterances")
    silent = []
    with dataset.output_keys_as(["id", "sig"]):
        for item in dataset:
            try:
                LEVELS[level](item["sig"].numpy(), SAMPLE_RATE)
            except ValueError:
                silent.append(item["id"])
    if silent:
        raise ValueError(
            f"{name}: {len(silent)} utterances are silent, so that there is no "
            f"signal-to-noise ratio: {', '.join(silent[:5])}. Take their rows "
            "out of the CSV."
        )


def _mixed(dataset, noise, snr) -> DynamicItemDataset:
    """A set at a signal-to-noise ratio."""
    facts = {"snr": CLEAN}
    originals = {name: name for name in dataset.data_ids}
    items = [copy.copy(item) for item in dataset.pipeline.dynamic_items]
    if snr is not None:
        mixed_with = f"noise {noise.fingerprint} at {snr:g} dB"
        facts = {"snr": f"{snr:g}", MIXED_WITH: mixed_with}
        originals = {in_noise(name, snr): name for name in dataset.data_ids}
        for item in items:
            item.provides = [
                WITHOUT_NOISE if key == "sig" else key for key in item.provides
            ]

        def add_noise(name, clean):
            """The waveform of an utterance, in its noise."""
            return noise.mix(clean, snr, originals[name])

        items.append(
            DynamicItem(
                takes=["id", WITHOUT_NOISE], func=add_noise, provides=["sig"]
            )
        )
    rows = {
        name: {k: v for k, v in dataset.data[original].items() if k != "id"}
        | facts
        for name, original in originals.items()
    }
    return DynamicItemDataset(
        rows, items, dict(dataset.pipeline.output_mapping)
    )
