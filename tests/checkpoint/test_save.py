"""Saving: what is published is whole, whatever happens in the middle; failures reach everyone and lose nothing."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from internevo_engine.checkpoint.load import verify
from internevo_engine.checkpoint.local import LocalStorage
from internevo_engine.checkpoint.save import MAX_FAILURES, Saver
from internevo_engine.checkpoint.view import ShardedView
from internevo_engine.errors import StorageError
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.runtime.launch import Place
from tests.checkpoint.small import PARAMS, alone, equal, is_sound, load, names, publish, saver_of, small_view
from tests.ranks import run_ranks

CALLS = ("open", "write", "fsync", "mkdir", "rename", "rmdir", "unlink", "listdir")
"""What a save asks of the system."""


class Killed(BaseException):
    """The process is gone: nothing that comes after happens either."""


class Faults:
    """Lets the n-th system call of a save go wrong."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, nth: int, fault: str) -> None:
        self.count, self._nth, self._fault = 0, nth, fault
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name), name))

    def _wrap(self, real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.count += 1
            if self._fault == "kill" and self.count >= self._nth:
                raise Killed
            if self.count == self._nth and self._fault == "short" and name == "write":
                return real(arguments[0], arguments[1][: max(1, len(arguments[1]) // 2)])
            if self.count == self._nth and self._fault in ("EIO", "ENOSPC"):
                number = getattr(errno, self._fault)
                raise OSError(number, os.strerror(number), str(arguments[0]))
            return real(*arguments, **keywords)

        return call


def finish_thread() -> None:
    """A killed writer has no outcome to wait for."""
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("fault", ["kill", "EIO", "ENOSPC", "short"])
def test_a_fault_at_any_system_call_leaves_a_checkpoint_that_loads(tmp_path: Path, fault: str):
    """Every call of one save, with the deletion of an older one in it."""
    nth, was_reached = 0, True
    while was_reached:
        nth += 1
        storage = LocalStorage(tmp_path / str(nth))
        publish(storage, 1)
        saver = saver_of(storage, 2, keep=1)
        with pytest.MonkeyPatch.context() as monkeypatch:
            faults = Faults(monkeypatch, nth, fault)
            saver.save(2, {"step": 2}, background=True)
            finish_thread()
            was_reached = faults.count >= nth
        assert is_sound(storage, (1, 2)), f"call {nth}"
        publish(LocalStorage(tmp_path / str(nth)), 3)  # a new start sweeps up and goes on
        assert is_sound(storage, (3,)), f"call {nth}"
        assert not [name for name in names(tmp_path / str(nth)) if not name.startswith("step-")], f"call {nth}"
    assert nth > 20


def test_any_safetensors_reader_opens_the_files(tmp_path: Path):
    publish(LocalStorage(tmp_path), 5)
    with safe_open(tmp_path / "step-5/rank-00000.safetensors", "pt") as file:
        for stretch in small_view(5).stretches:
            for state, tensor in zip(small_view(5).states, stretch.tensors, strict=True):
                param = PARAMS[stretch.param]
                assert torch.equal(file.get_tensor(f"{state}/{param.name}[0:{param.numel}]"), tensor)


def test_a_snapshot_is_frozen_while_training_goes_on(tmp_path: Path, monkeypatch):
    storage, gate = LocalStorage(tmp_path), threading.Event()
    real = os.open
    monkeypatch.setattr(os, "open", lambda *a, **k: (gate.wait(30), real(*a, **k))[1])
    saver = saver_of(storage, 7, rate_mb=100.0)
    view = saver._view
    gate.set()
    gate.clear()
    saver.save(7, {"step": 7}, background=True)
    for stretch in view.stretches:
        for tensor in stretch.tensors:
            tensor.zero_()
    gate.set()
    saver.wait()
    monkeypatch.undo()
    assert is_sound(storage, (7,))


def test_only_the_newest_are_kept_and_nothing_is_saved_twice(tmp_path: Path):
    storage = LocalStorage(tmp_path)
    saver = saver_of(storage, 1, keep=2)
    for step in (1, 2, 2, 3, 10):
        saver.save(step, {})
    assert storage.steps() == [3, 10]
    assert names(tmp_path) == ["step-10", "step-3"]


def test_a_published_checkpoint_is_never_written_again(tmp_path: Path):
    storage = LocalStorage(tmp_path)
    publish(storage, 1)
    before = (tmp_path / "step-1/manifest.json").read_bytes()
    with pytest.raises(StorageError, match="checkpoint of step 1 could not be published"):
        publish(storage, 1)
    assert (tmp_path / "step-1/manifest.json").read_bytes() == before
    assert is_sound(storage, (1,))


def test_failures_in_the_background_are_heard_and_forgotten_when_a_save_works(tmp_path: Path, monkeypatch):
    heard: list[str] = []
    saver = saver_of(LocalStorage(tmp_path), 1, say=heard.append)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
        for step in range(1, MAX_FAILURES):
            saver.save(step, {}, background=True)
        saver.wait()
        assert not saver.has_failed
        assert heard[0].startswith("the checkpoint of step 1 could not be published: rank 0: ")
        assert "Input/output error" in heard[0]
        saver.save(8, {}, background=True)
        saver.wait()
        assert saver.has_failed
    saver.save(9, {})
    assert not saver.has_failed
    assert len(heard) == MAX_FAILURES
    assert names(tmp_path) == ["step-9"]


def test_a_folder_that_can_not_be_written_is_refused_before_anything_is_saved(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"choose another folder: checkpoint\.dir"):
        saver_of(LocalStorage(tmp_path / "file"), 1)


def test_a_rate_is_kept_to_until_someone_waits(tmp_path: Path):
    saver = saver_of(LocalStorage(tmp_path), 1, rate_mb=1e-6)  # it would take minutes
    saver.save(1, {}, background=True)
    saver.poll()
    assert saver._pending is not None
    saver.wait()
    assert names(tmp_path) == ["step-1"]


def save_with_a_full_disk(place: Place, folder: Path) -> tuple[int, bool, list[str], list[int]]:
    """Rank 1's disk is full for three saves."""
    communicator = Communicator(place, torch.device("cpu"), ())
    heard: list[str] = []
    storage = LocalStorage(folder)
    view = small_view(4, place.rank, place.world)
    saver = Saver(storage, view, communicator, run_id="run", keep=9, say=heard.append)
    real = os.write
    if place.rank == 1:
        os.write = lambda descriptor, data: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
    for step in (1, 2, 3):
        saver.save(step, {}, background=True)
    saver.wait()
    has_failed, os.write = saver.has_failed, real
    saver.save(4, {"step": 4})
    return len(heard), has_failed, heard, storage.steps()


def test_one_rank_that_can_not_write_is_heard_of_by_all_and_nothing_is_published(tmp_path: Path):
    for count, has_failed, heard, steps in run_ranks(save_with_a_full_disk, 2, tmp_path / "ranks", tmp_path / "saved"):
        assert count == MAX_FAILURES
        assert has_failed
        assert heard[0] == "the checkpoint of step 1 could not be published: rank 1: [Errno 28] No space left on device"
        assert steps == [4]
    assert is_sound(LocalStorage(tmp_path / "saved"), (4,))
    assert verify(LocalStorage(tmp_path / "saved").published(4), 4).plan.world == 2


def test_replicas_write_nothing(tmp_path: Path):
    storage = LocalStorage(tmp_path)
    view = small_view(1)
    replica = ShardedView(view.params, view.states, view.stretches, is_writer=False, plan=view.plan)
    with pytest.raises(StorageError):  # alone, it leaves parameters that nobody wrote
        Saver(storage, replica, alone(), run_id="run", keep=1).save(1, {})
    assert storage.steps() == []
    publish(storage, 1)
    _, loaded = load(storage)
    assert equal(loaded, view)
