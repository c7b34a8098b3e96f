"""checkpoint: checkpoints in a folder. Files are synced, then their folder, which is renamed, then its parent.

Whatever moment a machine dies in, a folder called step-N is whole. Names are opened beneath the folder's descriptor
and never followed: a checkpoint can't lead a reader anywhere else.
"""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from internevo_engine.checkpoint.storage import Write, step_name, step_of
from internevo_engine.errors import CheckpointError, StorageError
from internevo_engine.faults import fail_as_told, fault

_TRASH, _DRAFT, _REFUSED = "trash-", ".tmp-", "refused-"


class LocalFolder:
    """See storage.Folder."""

    def __init__(self, path: Path) -> None:
        self._path, self.name = path, str(path)

    def sizes(self) -> dict[str, int]:
        with self._descriptor() as folder:
            entries = {name: os.stat(name, dir_fd=folder, follow_symlinks=False) for name in os.listdir(folder)}
        for name, entry in entries.items():
            if not stat.S_ISREG(entry.st_mode):
                raise CheckpointError(f"{self._path / name} is not a regular file; a checkpoint holds nothing else")
        return {name: entry.st_size for name, entry in entries.items()}

    @contextmanager
    def create(self, name: str) -> Iterator[Write]:
        fail_as_told("create", self._path / name)
        descriptor = os.open(self._path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

        def write(data: memoryview) -> None:
            while data:
                told = fault("write")
                if told is not None and told[0] == "errno":
                    raise OSError(told[1], os.strerror(told[1]), str(self._path / name))
                part = data[: max(1, len(data) // 2)] if told is not None else data
                data = data[os.write(descriptor, part) :]

        try:
            yield write
            fail_as_told("sync", self._path / name)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _sync(self._path)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        try:
            fail_as_told("load", self._path / name)
            with self._descriptor() as folder:  # O_NONBLOCK: opening a pipe must not wait for its writer
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        except OSError as error:
            raise CheckpointError(f"{self._path / name} can't be opened: {error.strerror}") from error
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise CheckpointError(f"{self._path / name} is not a regular file; a checkpoint holds nothing else")
            yield file

    @contextmanager
    def _descriptor(self) -> Iterator[int]:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise CheckpointError(f"{self._path} is not a checkpoint's folder: {error.strerror}") from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)


class LocalStorage:
    """See storage.Storage."""

    def __init__(self, root: Path) -> None:
        self._root, self.url = root, str(root)

    def prepare(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            for name in os.listdir(self._root):
                if name.startswith(_TRASH) or _DRAFT in name:
                    shutil.rmtree(self._root / name)
            probe = self._draft_path(0, "probe")
            os.mkdir(probe)
            os.rmdir(probe)
        except OSError as error:
            raise StorageError(f"{self._root}: {error.strerror}; choose another folder: checkpoint.dir=...") from None

    def steps(self) -> list[int]:
        names = os.listdir(self._root) if self._root.is_dir() else []
        return sorted(step for name in names if (step := step_of(name)) is not None)

    def draft(self, step: int, attempt: str) -> LocalFolder:
        path = self._draft_path(step, attempt)
        os.makedirs(path, mode=0o700, exist_ok=True)
        return LocalFolder(path)

    def published(self, step: int) -> LocalFolder:
        return LocalFolder(self._root / step_name(step))

    def publish(self, step: int, attempt: str) -> None:
        draft = self._draft_path(step, attempt)
        fail_as_told("publish", draft)
        _sync(draft)
        os.rename(draft, self._root / step_name(step))  # refused by the system where step-N is there and not empty
        _sync(self._root)

    def discard(self, step: int, attempt: str) -> None:
        shutil.rmtree(self._draft_path(step, attempt), ignore_errors=True)  # else `prepare` of the next start does it

    def remove(self, step: int) -> None:
        fail_as_told("remove", self._root / step_name(step))
        trash = self._root / f"{_TRASH}{step_name(step)}"
        os.rename(self._root / step_name(step), trash)
        _sync(self._root)
        shutil.rmtree(trash)

    def set_aside(self, step: int) -> None:
        targets = (self._root / f"{_REFUSED}{step_name(step)}.{number}" for number in range(1, 10**6))
        os.rename(self._root / step_name(step), next(path for path in targets if not path.exists()))
        _sync(self._root)

    def _draft_path(self, step: int, attempt: str) -> Path:
        return self._root / f"{step_name(step)}{_DRAFT}{attempt}"


def _sync(folder: Path) -> None:
    fail_as_told("sync", folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
