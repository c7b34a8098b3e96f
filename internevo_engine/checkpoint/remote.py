"""checkpoint: checkpoints under any fsspec URL. There a rename copies, so the manifest is what publishes.

The ranks write straight into step-N, and manifest.json comes last, under its final name: a folder without it is no
checkpoint. What is promised is what the store promises: that an object appears whole, and stays when its upload has
ended. fsspec is a dependency of torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from internevo_engine.checkpoint.local import LocalStorage
from internevo_engine.checkpoint.manifest import FILE
from internevo_engine.checkpoint.storage import Storage, Write, step_name, step_of
from internevo_engine.config.schema import Config
from internevo_engine.errors import CheckpointError, ConfigError, StorageError


def open_storage(url: str) -> Storage:
    """The storage behind a path or URL; nothing is made or read.

    Raises:
        ConfigError: no installed package knows the URL's protocol.
    """
    protocol, separator, rest = url.partition("://")
    if not separator or protocol in ("file", "local"):
        return LocalStorage(Path(rest if separator else url))
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"checkpoint.dir={url}: {error}; install the package, or name a folder") from None
    return RemoteStorage(filesystem, str(root), url)


def storage_of(config: Config, run: Path) -> Storage:
    """Where the checkpoints of a run in the folder `run` are. Raises ConfigError as `open_storage`."""
    return open_storage(config.checkpoint.dir or str(run / "checkpoints"))


class RemoteFolder:
    """See storage.Folder."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, path: str) -> None:
        self._filesystem, self._path, self.name = filesystem, path, filesystem.unstrip_protocol(path)

    def sizes(self) -> dict[str, int]:
        try:
            entries = cast(list[dict[str, Any]], self._filesystem.ls(self._path, detail=True, refresh=True))
        except OSError as error:
            raise CheckpointError(f"{self.name} can't be listed: {error}") from error
        return {_last(entry["name"]): int(entry["size"] or 0) for entry in entries}

    @contextmanager
    def create(self, name: str) -> Iterator[Write]:
        path = f"{self._path}/{name}"
        if self._filesystem.exists(path):
            raise FileExistsError(17, "is there already", path)
        with self._filesystem.open(path, "wb") as file:

            def write(data: memoryview) -> None:
                cast(BinaryIO, file).write(data)

            yield write

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        try:
            file = self._filesystem.open(f"{self._path}/{name}", "rb")
        except OSError as error:
            raise CheckpointError(f"{self.name}/{name} can't be opened: {error}") from error
        with file:
            yield cast(BinaryIO, file)


class RemoteStorage:
    """See storage.Storage."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, root: str, url: str) -> None:
        self._filesystem, self._root, self.url = filesystem, root.rstrip("/"), url

    def prepare(self) -> None:
        try:
            self._filesystem.makedirs(self._root, exist_ok=True)
            published = self.steps()
            for step in self._folders():
                if step not in published:
                    self._filesystem.rm(self._path(step), recursive=True)
            self._filesystem.pipe_file(f"{self._root}/probe", b"")
            self._filesystem.rm_file(f"{self._root}/probe")
        except Exception as error:  # every store has its own errors
            raise StorageError(f"{self.url}: {error}; choose another place: checkpoint.dir=...") from error

    def steps(self) -> list[int]:
        return [step for step in self._folders() if self._filesystem.exists(f"{self._path(step)}/{FILE}")]

    def draft(self, step: int, attempt: str) -> RemoteFolder:
        if step in self.steps():
            raise FileExistsError(17, "is published already", self._path(step))
        self._filesystem.makedirs(self._path(step), exist_ok=True)
        return RemoteFolder(self._filesystem, self._path(step))

    def published(self, step: int) -> RemoteFolder:
        return RemoteFolder(self._filesystem, self._path(step))

    def publish(self, step: int, attempt: str) -> None:
        """The manifest did it."""

    def discard(self, step: int, attempt: str) -> None:
        if step not in self.steps():
            self._filesystem.rm(self._path(step), recursive=True)

    def remove(self, step: int) -> None:
        self._filesystem.rm_file(f"{self._path(step)}/{FILE}")
        self._filesystem.rm(self._path(step), recursive=True)

    def set_aside(self, step: int) -> None:
        targets = (f"{self._root}/refused-{step_name(step)}.{number}" for number in range(1, 10**6))
        target = next(path for path in targets if not self._filesystem.exists(path))
        for path in sorted(self._filesystem.find(self._path(step)), key=lambda path: _last(path) != FILE):
            self._filesystem.mv(path, f"{target}/{_last(path)}")  # the manifest first: it is what makes a checkpoint

    def _folders(self) -> list[int]:
        self._filesystem.invalidate_cache(self._root)
        names = self._filesystem.ls(self._root, detail=False) if self._filesystem.exists(self._root) else []
        return sorted(step for name in names if (step := step_of(_last(name))) is not None)

    def _path(self, step: int) -> str:
        return f"{self._root}/{step_name(step)}"


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
