"""The states of a frozen upstream, computed once and kept in files.

A folder of a cache holds for each dataset ``features.bin`` (all states of all
utterances, one utterance behind the other), ``done.bin`` (a byte per utterance,
1 once it is whole) and ``index.json`` (what they were computed from).

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger
from tqdm.auto import tqdm

from speechbrain_ee.encoders import LayerwiseEncoder
from speechbrain_ee.encoders.base import SAMPLE_RATE
from speechbrain_ee.files import replacing

logger = get_logger(__name__)

DTYPES = ("float32", "float16")
COMMIT = 64  # utterances that are forced to disk together
GB = 1e9
# What tells two utterances apart, in the order of index.json.
FIELDS = ("id", "wav", "start", "samples", "bytes", "modified", "frames")
# The key of rows whose ``sig`` is not what ``wav`` holds: what was added to it.
MIXED_WITH = "mixed_with"


class FeatureCache:
    """All states of a frozen upstream for the utterances of datasets.

    In ``float32`` what is read is what was computed, bit for bit. In
    ``float16``, half the size, each value is off by at most 2⁻¹¹ of itself, or
    by 2⁻²⁵ where it is that small.

    Arguments
    ---------
    folder : str or Path
        Where the files are; it may hold those of several datasets.
    upstream : LayerwiseEncoder
        Frozen: nothing in it may be trained or dropped.
    dtype : str
        ``float32`` or ``float16``.
    device : str or torch.device
        Where the upstream runs.

    Example
    -------
    >>> from speechbrain.dataio.dataio import read_audio
    >>> from speechbrain_ee.encoders import FilterbankEncoder
    >>> folder = getfixture("tmp_path")
    >>> soundfile.write(folder / "a.wav", np.ones(16000), 16000)
    >>> rows = {"a": {"wav": str(folder / "a.wav"), "duration": 1.0}}
    >>> dataset = DynamicItemDataset(
    ...     rows, [{"func": read_audio, "takes": "wav", "provides": "sig"}]
    ... )
    >>> cache = FeatureCache(folder / "cache", FilterbankEncoder())
    >>> cache.fill("train", dataset)
    >>> (features,), frames = cache.read(["a"])
    >>> features.shape, frames
    (torch.Size([1, 101, 240]), tensor([101]))
    """

    def __init__(
        self,
        folder: str | Path,
        upstream: LayerwiseEncoder,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
    ):
        if dtype not in DTYPES:
            raise ValueError(
                f"dtype: {dtype!r} is none of {', '.join(DTYPES)}."
            )
        trained = [k for k, p in upstream.named_parameters() if p.requires_grad]
        if trained or upstream.training:
            raise ValueError(
                "An upstream that is trained cannot be cached: "
                + (
                    f"{len(trained)} parameters are, such as {trained[0]}. "
                    if trained
                    else "it is in training mode. "
                )
                + "Set freeze: True in it."
            )
        self.folder = Path(folder)
        self.upstream = upstream.to(device)
        self.dtype = np.dtype(dtype)
        self.device = device
        self.sizes = upstream.state_sizes
        self.upstream_facts = describe_upstream(upstream, device)
        self._where = {}  # id -> (record, offset, done, features)

    def fill(
        self,
        name: str,
        dataset: DynamicItemDataset,
        batch_size: int = 1,
        progressbar: bool = True,
    ) -> None:
        """Compute what is not there yet; then the utterances can be read.

        One process computes, and the others of a distributed run wait. A run
        that was cut short goes on where it was.

        Arguments
        ---------
        name : str
            Of the dataset, and of its folder.
        dataset : DynamicItemDataset
            With ``id``, ``sig`` and ``wav``, a file of which ``sig`` is all, or
            the piece from ``start`` to ``stop`` (samples); where something
            was added to it, ``mixed_with`` says what. It is read in its own
            order.
        batch_size : int
            Utterances that are computed at once.
        progressbar : bool
            Whether to show one.

        Raises
        ------
        ValueError
            If the files were computed from other data, by another upstream or
            in another dtype; if ``sig`` is not as long as its file says; or if
            a state does not fit into float16.
        OSError
            If there is not room enough on the disk, at first or later on.
        """
        records = self._records(dataset)
        folder = self.folder / name
        run_on_main(
            self._compute,
            [folder, name, records, dataset, batch_size, progressbar],
        )
        # Copy on write, as tensors must be of what could be written.
        features = torch.from_numpy(
            np.memmap(folder / "features.bin", self.dtype, "c")
        )
        done = np.fromfile(folder / "done.bin", np.uint8)
        offsets = self._offsets(records)
        for record, offset, whole in zip(records, offsets, done):
            known = self._where.get(record[0])
            if known is not None and known[0] != record:
                raise ValueError(
                    f"{name}: {record[0]} is the id of another utterance of "
                    "this cache. Give the datasets ids of their own, or each "
                    "a cache of its own."
                )
            if whole:
                self._where[record[0]] = (record, offset, features)

    def read(
        self, ids: Sequence[str]
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """What the upstream's ``forward`` gives for these utterances.

        Arguments
        ---------
        ids : sequence of str
            Utterances of datasets that ``fill`` was called with.

        Returns
        -------
        states : list of torch.Tensor
            One state of shape (batch, time, channel) per layer, 0 to the last,
            float32 on the CPU, zero behind the end of an utterance.
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,), on the CPU.

        Raises
        ------
        KeyError
            If an utterance is not in the cache.
        """
        missing = [name for name in ids if name not in self._where]
        if missing:
            raise KeyError(
                f"{missing[0]} is not in the cache {self.folder}: fill it with "
                "the dataset first."
            )
        found = [self._where[name] for name in ids]
        frames = torch.tensor([record[-1] for record, *_ in found])
        longest = int(frames.max())
        states = [torch.zeros(len(ids), longest, size) for size in self.sizes]
        for row, (record, start, features) in enumerate(found):
            for state, size in zip(states, self.sizes):
                stop = start + record[-1] * size
                state[row, : record[-1]] = features[start:stop].view(-1, size)
                start = stop
        return states, frames

    def _records(self, dataset):
        """What each utterance is, and how many frames it has."""
        if len(dataset) == 0:
            raise ValueError("There is no utterance to compute states of.")

        def look(name):
            """At the head of a file."""
            row = dataset.data[name]
            path, start = row["wav"], int(row.get("start") or 0)
            info, stat = soundfile.info(path), os.stat(path)
            stop = min(int(row.get("stop") or info.frames), info.frames)
            heard = [str(path), row.get(MIXED_WITH)]
            return [
                *(name, " + ".join(filter(None, heard)), start, stop - start),
                *(stat.st_size, stat.st_mtime_ns),
            ]

        with ThreadPoolExecutor() as pool:
            records = list(pool.map(look, dataset.data_ids))
        samples = torch.tensor([record[3] for record in records])
        frames = self.upstream.frames_of(samples).tolist()
        for record, count in zip(records, frames):
            if count < self.upstream.least_frames:
                raise ValueError(
                    f"{record[0]} has {record[3]} samples, of which {count} "
                    "frames are left: too few. Leave such utterances out when "
                    "the data is prepared (min_duration)."
                )
            record.append(count)
        return records

    def _offsets(self, records):
        """Where each utterance begins in the file, in values, and its end."""
        counts = [record[-1] * sum(self.sizes) for record in records]
        return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).tolist()

    def _compute(self, folder, name, records, dataset, batch_size, progressbar):
        """Write what is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "w") as lock:
            # Another run may be at it; then there is nothing left to do.
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._open_index(folder, records)
            done = np.fromfile(folder / "done.bin", np.uint8)
            missing = np.flatnonzero(done == 0).tolist()
            if missing:
                self._announce(folder, name, records, missing)
                self._write_states(
                    folder, records, missing, dataset, batch_size, progressbar
                )

    def _open_index(self, folder, records):
        """Begin a dataset, or see that it is the same as before."""
        now = {
            "upstream": self.upstream_facts,
            "dtype": self.dtype.name,
            "fields": list(FIELDS),
            "utterances": records,
        }
        index = folder / "index.json"
        if index.is_file():
            before = json.loads(index.read_text(encoding="utf-8"))
            difference = _difference(before, now)
            if difference is not None:
                raise ValueError(
                    f"{folder} was computed from something else: {difference}. "
                    "Delete this folder to compute it anew, or take another "
                    "one for the cache."
                )
            return
        (folder / "features.bin").write_bytes(b"")
        (folder / "done.bin").write_bytes(bytes(len(records)))
        with replacing(index) as file:
            file.write_text(json.dumps(now), encoding="utf-8")

    def _announce(self, folder, name, records, missing):
        """Say what it will take, and refuse what does not fit."""
        width = sum(self.sizes) * self.dtype.itemsize
        needed = [width * records[row][-1] for row in missing]
        total = width * sum(record[-1] for record in records)
        hours = sum(record[3] for record in records) / SAMPLE_RATE / 3600
        free = shutil.disk_usage(folder).free
        logger.info(
            f"Features of {name}: {len(records)} utterances, {hours:.2f} h, "
            f"{total / GB:.3f} GB in {self.dtype.name}; {len(missing)} "
            f"utterances and {sum(needed) / GB:.3f} GB are still to be computed"
        )
        if sum(needed) > free:
            raise OSError(
                errno.ENOSPC,
                f"The features of {name} need {sum(needed) / GB:.3f} GB, and "
                f"there are {free / GB:.3f} GB free. Free some, choose another "
                "folder, or set dtype: float16",
                str(folder),
            )

    def _write_states(
        self, folder, records, missing, dataset, batch_size, progressbar
    ):
        """Compute utterances, and mark each as done once it is on disk."""
        offsets = self._offsets(records)
        written = []
        with (
            # Without a buffer, which would be written once more on closing.
            open(folder / "features.bin", "r+b", buffering=0) as features,
            open(folder / "done.bin", "r+b", buffering=0) as done,
            dataset.output_keys_as(["id", "sig"]),
            tqdm(total=len(missing), disable=not progressbar) as bar,
        ):

            def commit():
                """First the states, then that they are whole."""
                os.fsync(features.fileno())
                for row in written:
                    _write_at(done, row, b"\1")
                os.fsync(done.fileno())
                written.clear()

            try:
                try:
                    for first in range(0, len(missing), batch_size):
                        rows = missing[first : first + batch_size]
                        for row, values in self._states(rows, records, dataset):
                            at = offsets[row] * self.dtype.itemsize
                            _write_at(features, at, values)
                            written.append(row)
                        bar.update(len(rows))
                        if len(written) >= COMMIT:
                            commit()
                finally:
                    commit()
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                raise OSError(
                    errno.ENOSPC,
                    "The disk is full. What is whole is kept: free some space "
                    "and run again, or begin anew elsewhere or with dtype: "
                    "float16",
                    str(folder),
                ) from error

    @torch.no_grad()
    def _states(self, rows, records, dataset):
        """Each utterance of a batch and all that is kept of it."""
        batch = PaddedBatch([dataset[row] for row in rows]).to(self.device)
        states, frames = self.upstream(*batch.sig)
        self._check_frames([records[row] for row in rows], frames)
        for i, row in enumerate(rows):
            values = torch.cat([h[i, : frames[i]].flatten() for h in states])
            values = values.float().cpu().numpy()
            yield row, self._cast(values, records[row][0])

    def _check_frames(self, records, frames):
        """Raise if waveforms are not as long as their files."""
        for record, count in zip(records, frames.tolist()):
            if count != record[-1]:
                raise ValueError(
                    f"{record[0]}: sig has {count} frames, and {record[1]} "
                    f"{record[-1]}. Cache whole files, without augmentation, "
                    "crops or resampling."
                )

    def _cast(self, values, name):
        """In the dtype of the cache."""
        with np.errstate(over="ignore"):
            cast = values.astype(self.dtype)
        if not np.isfinite(cast).all():
            raise ValueError(
                f"{name}: a state of {np.abs(values).max():.3g} does not fit "
                f"into {self.dtype.name}. Take float32, or see why it is so "
                "large."
            )
        return cast


def describe_upstream(
    upstream: LayerwiseEncoder, device: str | torch.device = "cpu"
) -> dict:
    """What decides the states: weights, and what they make of a known sound.

    Settings that no weight shows, such as the normalisation of waveforms, are
    heard in the probe.

    Arguments
    ---------
    upstream : LayerwiseEncoder
        In evaluation mode.
    device : str or torch.device
        Where it is.

    Returns
    -------
    dict
        Ready for JSON: ``class``, ``state_sizes``, ``weights`` (a digest) and
        ``probe`` (figures of each state).

    Example
    -------
    >>> from speechbrain_ee.encoders import FilterbankEncoder
    >>> facts = describe_upstream(FilterbankEncoder())
    >>> facts["state_sizes"], len(facts["weights"])
    ([240], 64)
    """
    digest = hashlib.sha256()
    for key, x in upstream.state_dict().items():
        digest.update(f"{key} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.detach().cpu().contiguous().numpy().tobytes())
    generator = torch.Generator().manual_seed(0)
    wavs = 0.01 + 0.05 * torch.randn(1, SAMPLE_RATE, generator=generator)
    with torch.no_grad():
        states, _ = upstream(wavs.to(device))
    kind = type(upstream)
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "state_sizes": upstream.state_sizes,
        "weights": digest.hexdigest(),
        "probe": [
            [float(x.mean()), float(x.std()), float(x[0, 0, 0]), x.shape[1]]
            for x in states
        ],
    }


def upstream_difference(before: Mapping, now: Mapping) -> str | None:
    """The first thing that differs between two upstreams, in words.

    Arguments
    ---------
    before : mapping
        From ``describe_upstream``.
    now : mapping
        The same, of another or of the same.

    Returns
    -------
    str or None
        None where all states are the same.

    Example
    -------
    >>> from speechbrain_ee.encoders import FilterbankEncoder
    >>> one = describe_upstream(FilterbankEncoder())
    >>> other = describe_upstream(FilterbankEncoder(deltas=False))
    >>> upstream_difference(one, other)
    "the upstream's state sizes differ"
    """
    for key in ("class", "state_sizes", "weights"):
        if before[key] != now[key]:
            return f"the upstream's {key.replace('_', ' ')} differ"
    probes = (np.array(one["probe"]) for one in (before, now))
    if not np.allclose(*probes, rtol=1e-3, atol=1e-4):
        return (
            "the upstream's settings differ: it hears the same sound otherwise"
        )
    return None


def _difference(before, now):
    """The first thing that differs between two indices, in words."""
    difference = upstream_difference(before["upstream"], now["upstream"])
    if difference is not None:
        return difference
    if before["dtype"] != now["dtype"]:
        return f"dtype was {before['dtype']}, now it is {now['dtype']}"
    if len(before["utterances"]) != len(now["utterances"]):
        counts = (len(one["utterances"]) for one in (before, now))
        return "there were {} utterances, now there are {}".format(*counts)
    for old, new in zip(before["utterances"], now["utterances"]):
        for field, a, b in zip(FIELDS, old, new):
            if a != b:
                return (
                    f"{field} of the utterance {old[0]} was {a}, now it is {b}"
                )
    return None


def _write_at(file, offset, values):
    """Write values at a place of an unbuffered file, to the last byte."""
    left = memoryview(values).cast("B")
    file.seek(offset)
    while left:
        left = left[file.write(left) :]
