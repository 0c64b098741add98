"""Checkpoints of runs that may be killed at any moment.

SpeechBrain's ``Checkpointer`` writes the file by which a checkpoint is known
before it writes the parameters, and deletes a checkpoint file by file: a run
killed in between leaves a folder that is taken for a checkpoint and is none.
Here a folder is renamed into place when it is complete, and out of the way
before anything in it goes.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import logging
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml
from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    METAFNAME,
    PARAMFILE_EXT,
    Checkpoint,
    Checkpointer,
    ckpt_recency,
)
from speechbrain.utils.distributed import (
    ddp_barrier,
    if_main_process,
    run_on_main,
)
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

PARTIAL = ".partial-"  # being written
DELETED = ".deleted-"  # being deleted
ASIDE = "+replaced"  # a checkpoint still, until there is one of its old name
_META_KEYS = {"unixtime", "end-of-epoch"}


class SafeCheckpointer(Checkpointer):
    """A Checkpointer whose checkpoints are complete or not there at all.

    Everything is written into a folder that is taken for no checkpoint, forced
    to disk, and renamed in one step; a checkpoint is deleted under another name
    too. What a killed run leaves behind is removed when the next checkpoint is
    saved, and not earlier, as one process may read a folder that another one
    writes. All processes of a run must see the same file system.

    A folder that a plain ``Checkpointer`` left incomplete is passed over, with
    a warning: every recoverable must have its file, except those that
    SpeechBrain lets a checkpoint lack, no file may be empty, and those that
    ``torch.save`` wrote must have their end.

    Arguments
    ---------
    checkpoints_dir : str or Path
        Where the checkpoints are.
    recoverables : mapping, optional
        Name to what is saved and recovered.
    **kwargs
        Those of ``speechbrain.utils.checkpoints.Checkpointer``.

    Example
    -------
    >>> import torch
    >>> folder = getfixture("tmp_path")
    >>> model = torch.nn.Linear(1, 1)
    >>> checkpointer = SafeCheckpointer(folder, {"model": model})
    >>> saved = checkpointer.save_checkpoint(name="first")
    >>> saved.paramfiles["model"].relative_to(folder).as_posix()
    'CKPT+first/model.ckpt'
    >>> weight = model.weight.detach().clone()
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> recovered = checkpointer.recover_if_possible()
    >>> torch.equal(model.weight, weight)
    True
    """

    def save_checkpoint(
        self,
        meta: Mapping | None = None,
        end_of_epoch: bool = True,
        name: str | None = None,
        verbosity: int = logging.INFO,
    ) -> Checkpoint | None:
        """Save a checkpoint; to be called on every process.

        Arguments
        ---------
        meta : mapping, optional
            Goes into the meta file, beside the time and ``end_of_epoch``.
        end_of_epoch : bool
            What is loaded may depend on it.
        name : str, optional
            Of the checkpoint, instead of the time. One that has this name
            already is replaced.
        verbosity : int
            Logging level.

        Returns
        -------
        Checkpoint
            What was saved; None on processes other than the main one.

        Raises
        ------
        RuntimeError
            If a save hook has not written its file.
        """
        if if_main_process():
            self._remove_leftovers()
        written = super().save_checkpoint(
            meta or {}, end_of_epoch, name, verbosity=logging.NOTSET
        )
        ddp_barrier()  # until every process has written
        saved = None
        if if_main_process():
            saved = self._put_in_place(written)
            kind = "end-of-epoch" if end_of_epoch else "intra-epoch"
            logger.log(verbosity, f"Saved an {kind} checkpoint in {saved.path}")
        ddp_barrier()  # until all can find it
        return saved

    def save_and_keep_only(
        self,
        meta: Mapping | None = None,
        end_of_epoch: bool = True,
        name: str | None = None,
        num_to_keep: int = 1,
        keep_recent: bool = True,
        importance_keys: Sequence[Callable] = (),
        max_keys: Sequence[str] = (),
        min_keys: Sequence[str] = (),
        ckpt_predicate: Callable | None = None,
        verbosity: int = logging.INFO,
    ) -> None:
        """Save a checkpoint, then delete the least important ones.

        SpeechBrain's adds recency to a list that all later calls share; here
        ``keep_recent`` is of this call only.

        Arguments
        ---------
        meta : mapping, optional
            As in ``save_checkpoint``.
        end_of_epoch : bool
            As in ``save_checkpoint``.
        name : str, optional
            As in ``save_checkpoint``.
        num_to_keep : int
            As in ``delete_checkpoints``.
        keep_recent : bool
            Whether recency is one more order of importance.
        importance_keys : sequence of callable
            As in ``delete_checkpoints``.
        max_keys : sequence of str
            As in ``delete_checkpoints``.
        min_keys : sequence of str
            As in ``delete_checkpoints``.
        ckpt_predicate : callable, optional
            As in ``delete_checkpoints``.
        verbosity : int
            Logging level.
        """
        self.save_checkpoint(meta, end_of_epoch, name, verbosity)
        recency = [ckpt_recency] if keep_recent else []
        self.delete_checkpoints(
            num_to_keep=num_to_keep,
            max_keys=max_keys,
            min_keys=min_keys,
            importance_keys=[*importance_keys, *recency],
            ckpt_predicate=ckpt_predicate,
            verbosity=verbosity,
        )

    def delete_checkpoints(
        self,
        *,
        num_to_keep: int = 1,
        min_keys: Sequence[str] | None = None,
        max_keys: Sequence[str] | None = None,
        importance_keys: Sequence[Callable] = (ckpt_recency,),
        ckpt_predicate: Callable | None = None,
        verbosity: int = logging.INFO,
    ) -> None:
        """Delete all but the most important checkpoints.

        Arguments
        ---------
        num_to_keep : int
            How many are kept by each order of importance.
        min_keys : sequence of str, optional
            Figures in the meta file of which the lowest are kept.
        max_keys : sequence of str, optional
            Figures of which the highest are kept.
        importance_keys : sequence of callable
            Functions of a Checkpoint; those with the highest values are kept.
        ckpt_predicate : callable, optional
            Checkpoints for which it is False are left alone.
        verbosity : int
            Logging level.

        Raises
        ------
        ValueError
            If ``num_to_keep`` is negative.
        """
        if num_to_keep < 0:
            raise ValueError(f"num_to_keep: {num_to_keep} is negative.")
        orders = [
            *({"min_key": key} for key in min_keys or ()),
            *({"max_key": key} for key in max_keys or ()),
            *({"importance_key": key} for key in importance_keys),
        ]

        def delete():
            """Delete what no order keeps."""
            found, kept = set(), set()
            for order in orders:
                ranked = self.find_checkpoints(
                    **order, ckpt_predicate=ckpt_predicate
                )
                found.update(one.path for one in ranked)
                kept.update(one.path for one in ranked[:num_to_keep])
            for folder in sorted(found - kept):
                _delete(folder)
                logger.log(verbosity, f"Deleted checkpoint in {folder}")

        ddp_barrier()  # until no process saves or loads
        run_on_main(delete)

    def recover_if_possible(self, *args, **kwargs) -> Checkpoint | None:
        """Load a checkpoint, if there is one.

        Arguments
        ---------
        *args
            Those of ``Checkpointer.recover_if_possible``.
        **kwargs
            Those of ``Checkpointer.recover_if_possible``.

        Returns
        -------
        Checkpoint
            What was loaded; None if there are no checkpoints.

        Raises
        ------
        RuntimeError
            If there are checkpoints but none is complete, rather than to start
            anew: what is recovered may have been added to after they were
            saved.
        """
        loaded = super().recover_if_possible(*args, **kwargs)
        found = super()._list_checkpoint_dirs()
        if loaded is None and found and not self._list_checkpoint_dirs():
            raise RuntimeError(
                f"No checkpoint in {self.checkpoints_dir} is complete: in "
                f"{found[0].name}, {self._fault(found[0])}. Register the "
                "recoverables that it was saved with, move it away to start "
                "anew, or choose another output_folder."
            )
        return loaded

    def _list_checkpoint_dirs(self):
        """Folders of complete checkpoints."""
        complete = []
        for folder in super()._list_checkpoint_dirs():
            fault = self._fault(folder)
            if fault is None:
                complete.append(folder)
            else:
                logger.warning_once(
                    f"The checkpoint {folder} is passed over: {fault}. If it "
                    "was left by a killed run, it can be deleted."
                )
        return complete

    def _fault(self, folder: Path) -> str | None:
        """What is wrong with a checkpoint, if anything."""
        try:
            meta = yaml.safe_load((folder / METAFNAME).read_text("utf-8"))
        except yaml.YAMLError:
            meta = None
        if not isinstance(meta, dict) or not _META_KEYS <= meta.keys():
            return f"{METAFNAME} is cut"
        for name in self.recoverables:
            if not (folder / f"{name}{PARAMFILE_EXT}").exists() and not (
                self.allow_partial_load
                or "dataloader" in name
                or self.optional_recoverables.get(name, False)
            ):
                return f"{name}{PARAMFILE_EXT} is missing"
        for path in folder.glob(f"*{PARAMFILE_EXT}"):
            if path.is_file() and is_cut(path):
                return f"{path.name} is cut"
        return None

    def _new_checkpoint_dirpath(self):
        """Where SpeechBrain writes the next checkpoint."""
        return _renamed(super()._new_checkpoint_dirpath(), PARTIAL)

    def _custom_checkpoint_dirpath(self, name):
        """Where SpeechBrain writes a checkpoint of this name."""
        return _renamed(super()._custom_checkpoint_dirpath(name), PARTIAL)

    def _put_in_place(self, written: Checkpoint) -> Checkpoint:
        """Turn what has been written into a checkpoint."""
        fault = self._fault(written.path)
        if fault is not None:
            raise RuntimeError(
                f"The checkpoint {written.path} cannot be recovered: {fault}. "
                "Every save hook must write the file that it is given."
            )
        final = written.path.with_name(written.path.name.removeprefix(PARTIAL))
        aside = final.with_name(f"{final.name}{ASIDE}")
        flush_to_disk(written.path)
        if final.exists():
            if aside.exists():
                _delete(aside)
            os.rename(final, aside)
        os.rename(written.path, final)
        _flush(final.parent)
        if aside.exists():
            _delete(aside)
        paramfiles = {
            name: final / path.name for name, path in written.paramfiles.items()
        }
        return Checkpoint(final, written.meta, paramfiles)

    def _remove_leftovers(self):
        """Remove what a killed run was writing or deleting."""
        for prefix in (PARTIAL, DELETED):
            pattern = f"{prefix}{CKPT_PREFIX}+*"
            for folder in self.checkpoints_dir.glob(pattern):
                shutil.rmtree(folder)


def is_cut(path: str | Path) -> bool:
    """Whether a file lacks its end, as far as that can be told.

    Arguments
    ---------
    path : str or Path
        A file that a save hook wrote.

    Returns
    -------
    bool
        True if it is empty, or if it begins as what ``torch.save`` writes and
        does not end so.

    Example
    -------
    >>> import torch
    >>> path = getfixture("tmp_path") / "model.ckpt"
    >>> torch.save({"weight": torch.ones(9)}, path)
    >>> is_cut(path)
    False
    >>> _ = path.write_bytes(path.read_bytes()[:-1])
    >>> is_cut(path)
    True
    """
    with open(path, "rb") as file:
        start = file.read(4)
    return not start or (
        start == b"PK\x03\x04" and not zipfile.is_zipfile(path)
    )


def flush_to_disk(folder: str | Path) -> None:
    """Force a folder and all that is in it to disk.

    Else a rename may outlive a power cut that the renamed files do not.

    Arguments
    ---------
    folder : str or Path
        What has been written.

    Example
    -------
    >>> flush_to_disk(getfixture("tmp_path"))
    """
    for path in [*Path(folder).rglob("*"), Path(folder)]:
        _flush(path)


def _flush(path: Path) -> None:
    """Force a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _renamed(folder: Path, prefix: str) -> Path:
    """The same folder under a name with a prefix."""
    return folder.with_name(f"{prefix}{folder.name}")


def _delete(folder: Path) -> None:
    """Delete a checkpoint, which is none from the first moment on."""
    doomed = _renamed(folder, DELETED)
    if doomed.exists():
        shutil.rmtree(doomed)
    os.rename(folder, doomed)
    shutil.rmtree(doomed)
