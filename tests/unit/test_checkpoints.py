"""Checkpoints: whole or not there, at whatever moment the run is killed."""

import itertools
import os
import shutil
import socket
import time

import pytest
import torch
from speechbrain.utils.checkpoints import (
    Checkpointer,
    ckpt_recency,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)

from speechbrain_ee.checkpoints import SafeCheckpointer


class Killed(BaseException):
    """Ends a run where it is raised."""


@register_checkpoint_hooks
class Number:
    """Saves one number; the run can be killed before or while it does."""

    def __init__(self, value=0, killed_after=None):
        self.value = value
        self.killed_after = killed_after

    @mark_as_saver
    def save(self, path):
        if self.killed_after == "nothing":
            raise Killed
        path.write_text(str(self.value)[: self.killed_after])
        if self.killed_after is not None:
            raise Killed

    @mark_as_loader
    def load(self, path, end_of_epoch):
        self.value = int(path.read_text())


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Every checkpoint is of a second of its own."""
    seconds = itertools.count(1_700_000_000)
    monkeypatch.setattr(time, "time", lambda: float(next(seconds)))


def make(folder, kind=SafeCheckpointer, **values):
    """A checkpointer of numbers and of a layer."""
    recoverables = {name: Number(value) for name, value in values.items()}
    return kind(folder, {**recoverables, "layer": torch.nn.Linear(2, 2)})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def recovered(folder, **kwargs):
    """The number that a new run begins with; None if it starts anew."""
    checkpointer = make(folder, count=0)
    found = checkpointer.recover_if_possible(**kwargs)
    return found and checkpointer.recoverables["count"].value


def test_what_is_saved_is_what_speechbrain_reads(tmp_path):
    saved = make(tmp_path, count=7).save_checkpoint(
        {"WER": 5.0}, end_of_epoch=False
    )
    assert names(tmp_path) == [saved.path.name]
    assert saved.path.name.startswith("CKPT+")
    assert all(path.is_file() for path in saved.paramfiles.values())

    plain = make(tmp_path, Checkpointer, count=0)
    assert plain.list_checkpoints() == [saved]
    assert plain.recover_if_possible(min_key="WER").meta["WER"] == 5.0
    assert plain.recoverables["count"].value == 7
    assert saved.meta["end-of-epoch"] is False


@pytest.mark.parametrize("killed_after", ["nothing", 0, 1])
def test_a_run_killed_while_saving_leaves_no_checkpoint(tmp_path, killed_after):
    checkpointer = make(tmp_path, count=41)
    before = checkpointer.save_checkpoint()
    count = checkpointer.recoverables["count"]
    count.value, count.killed_after = 42, killed_after
    with pytest.raises(Killed):
        checkpointer.save_checkpoint()
    assert make(tmp_path, Checkpointer).list_checkpoints() == [before]
    assert recovered(tmp_path) == 41

    (leftover,) = {*names(tmp_path)} - {before.path.name}
    assert leftover.startswith(".partial-CKPT+")
    after = make(tmp_path, count=43).save_checkpoint()
    assert names(tmp_path) == sorted([before.path.name, after.path.name])


def test_a_run_killed_before_the_rename_leaves_no_checkpoint(
    tmp_path, monkeypatch
):
    def killed(*paths):
        raise Killed

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(Killed):
        make(tmp_path, count=1).save_checkpoint()
    assert recovered(tmp_path) is None


def test_a_run_killed_while_deleting_leaves_no_checkpoint(
    tmp_path, monkeypatch
):
    checkpointer = make(tmp_path, count=1)
    old = checkpointer.save_checkpoint()

    def killed(folder):
        (folder / "layer.ckpt").unlink()
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "rmtree", killed)
        checkpointer.recoverables["count"].value = 2
        checkpointer.save_and_keep_only()
    assert old.path.name not in names(tmp_path)
    assert len(make(tmp_path, Checkpointer).list_checkpoints()) == 1
    assert recovered(tmp_path) == 2

    make(tmp_path, count=3).save_and_keep_only(num_to_keep=2)
    assert all(name.startswith("CKPT+") for name in names(tmp_path))
    assert len(names(tmp_path)) == 2


def test_reading_removes_nothing(tmp_path):
    """Another process may be saving just now."""
    partial = tmp_path / ".partial-CKPT+now"
    partial.mkdir()
    recovered(tmp_path)
    make(tmp_path, count=1).list_checkpoints()
    assert partial.is_dir()


def test_a_name_can_be_used_again(tmp_path):
    for count in (1, 2, 3):
        saved = make(tmp_path, count=count).save_checkpoint(name="best")
        assert saved.path.name == "CKPT+best"
        assert names(tmp_path) == ["CKPT+best"]
        assert recovered(tmp_path) == count


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_run_killed_while_a_name_changes_hands_has_a_checkpoint(
    tmp_path, monkeypatch, renames
):
    make(tmp_path, count=1).save_checkpoint(name="best")
    left, rename = iter(range(renames)), os.rename

    def killed_later(*paths):
        if next(left, None) is None:
            raise Killed
        rename(*paths)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "rename", killed_later)
        make(tmp_path, count=2).save_checkpoint(name="best")
    assert recovered(tmp_path) == (2 if renames == 2 else 1)
    make(tmp_path, count=3).save_checkpoint(name="best")
    assert names(tmp_path) == ["CKPT+best"]
    assert recovered(tmp_path) == 3


def meta_cut(folder):
    (folder / "CKPT.yaml").write_text("")


def file_missing(folder):
    (folder / "count.ckpt").unlink()


def file_empty(folder):
    (folder / "count.ckpt").write_text("")


def file_cut(folder):
    path = folder / "layer.ckpt"
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (meta_cut, "CKPT.yaml is cut"),
        (file_missing, "count.ckpt is missing"),
        (file_empty, "count.ckpt is cut"),
        (file_cut, "layer.ckpt is cut"),
    ],
)
def test_what_a_plain_checkpointer_left_incomplete_is_passed_over(
    tmp_path, caplog, damage, fault
):
    plain = make(tmp_path, Checkpointer, count=1)
    whole = plain.save_checkpoint()
    plain.recoverables["count"].value = 2
    cut = plain.save_checkpoint()
    damage(cut.path)
    assert recovered(tmp_path) == 1
    assert make(tmp_path, count=0).list_checkpoints() == [whole]
    (warned,) = {r.message for r in caplog.records if r.levelname == "WARNING"}
    assert str(cut.path) in warned and fault in warned


def test_a_run_does_not_start_anew_where_no_checkpoint_is_complete(tmp_path):
    saved = make(tmp_path, count=1).save_checkpoint()
    more = make(tmp_path, count=0, scale=0)
    with pytest.raises(RuntimeError, match=r"scale.ckpt is missing.*anew"):
        more.recover_if_possible()
    shutil.rmtree(saved.path)
    assert more.recover_if_possible() is None


def test_what_speechbrain_lets_a_checkpoint_lack_may_be_lacking(tmp_path):
    make(tmp_path, count=1).save_checkpoint()
    more = make(tmp_path, count=0)
    more.add_recoverable("scaler", Number(5), optional_load=True)
    more.add_recoverable("dataloader-TRAIN", Number(6))
    with pytest.warns(UserWarning, match="missing a load path"):
        assert more.recover_if_possible() is not None
    assert more.recoverables["count"].value == 1


def test_a_recoverable_that_saves_nothing_is_refused(tmp_path):
    checkpointer = make(tmp_path, count=1)
    checkpointer.add_recoverable(
        "mute", Number(), custom_save_hook=lambda number, path: None
    )
    with pytest.raises(RuntimeError, match="mute.ckpt is missing"):
        checkpointer.save_checkpoint()
    assert recovered(tmp_path) is None


def rate(checkpoint):
    return -checkpoint.meta["WER"]


@pytest.mark.parametrize(
    "kept",
    [
        {},
        {"num_to_keep": 2},
        {"num_to_keep": 2, "min_keys": ["WER"]},
        {"max_keys": ["WER"], "keep_recent": False},
        {"importance_keys": [rate]},
        {"num_to_keep": 0},
        {"ckpt_predicate": lambda c: c.meta["WER"] > 2},
        {"num_to_keep": 3, "min_keys": ["loss"]},
    ],
)
def test_the_same_checkpoints_are_kept_as_by_speechbrain(tmp_path, kept):
    def survivors(kind):
        folder = tmp_path / kind.__name__
        checkpointer = make(folder, kind, count=0)
        for number, error_rate in enumerate([3.0, 1.0, 4.0, 2.0, 2.0, 5.0]):
            own = {"importance_keys": [], **kept}
            own["importance_keys"] = [*own["importance_keys"]]
            meta = {"number": number, "WER": error_rate}
            checkpointer.save_and_keep_only(meta, **own)
        found = checkpointer.find_checkpoints()
        return [checkpoint.meta["number"] for checkpoint in found]

    assert survivors(SafeCheckpointer) == survivors(Checkpointer)


def test_one_call_leaves_no_trace_in_the_next(tmp_path):
    checkpointer = make(tmp_path, count=0)
    checkpointer.save_and_keep_only({"WER": 1.0})
    for error_rate in (2.0, 3.0):
        checkpointer.save_and_keep_only(
            {"WER": error_rate}, min_keys=["WER"], keep_recent=False
        )
    (left,) = checkpointer.list_checkpoints()
    assert left.meta["WER"] == 1.0


def test_a_negative_number_to_keep_is_refused(tmp_path):
    with pytest.raises(ValueError, match="num_to_keep: -1"):
        make(tmp_path).delete_checkpoints(
            num_to_keep=-1, importance_keys=[ckpt_recency]
        )


def save_shard(number, path):
    """As for parameters that are spread over processes."""
    rank = torch.distributed.get_rank()
    path.mkdir(exist_ok=True)
    time.sleep(rank / 2)  # the main process must wait
    (path / f"{rank}.txt").write_text(str(number.value))


def save_together(rank, folder, port):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.distributed.init_process_group("gloo")
    checkpointer = make(folder, count=rank)
    checkpointer.add_recoverable(
        "shards", Number(rank), custom_save_hook=save_shard
    )
    saved = checkpointer.save_checkpoint()
    assert (saved is None) == (rank == 1)
    (found,) = checkpointer.list_checkpoints()
    assert (found.path / "shards.ckpt/0.txt").is_file()
    assert (found.path / "shards.ckpt/1.txt").read_text() == "1"
    # written by the main process only
    assert (found.path / "count.ckpt").read_text() == "0"
    checkpointer.save_and_keep_only(name="last")
    assert names(folder) == ["CKPT+last"]
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_save_together(tmp_path):
    torch.multiprocessing.spawn(save_together, (tmp_path, free_port()), 2)
    assert names(tmp_path) == ["CKPT+last"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
