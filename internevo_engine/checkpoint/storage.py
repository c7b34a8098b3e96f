"""checkpoint: where checkpoints lie, as save.py and load.py see it. local.py is a folder, remote.py any fsspec URL.

    ROOT/step-1000/manifest.json rank-00000.safetensors ...   published: whole, and never written again
    ROOT/step-2000.tmp-5e1f/...                               a draft: nobody reads it

A draft is filled, the manifest last, and published; only then does the checkpoint exist.
"""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol

from internevo_engine.errors import CheckpointError

Write = Callable[[memoryview], None]
"""Append all of the bytes."""

_STEP = re.compile(r"step-(0|[1-9][0-9]{0,15})")


class Folder(Protocol):
    """A draft or a published checkpoint."""

    name: str
    """For people."""

    def sizes(self) -> dict[str, int]:
        """Bytes of every entry. Raises CheckpointError where the folder can't be listed or an entry is no file."""
        ...

    def create(self, name: str) -> AbstractContextManager[Write]:
        """A new file; it is durable when the block ends. Raises OSError."""
        ...

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Read a file. Raises CheckpointError where it isn't one."""
        ...


class Storage(Protocol):
    """The checkpoints of one run. Every method but `steps`, `draft` and `published` is for rank 0."""

    url: str

    def prepare(self) -> None:
        """Make the root, sweep away what died half-way, and prove that a file can be made. Raises StorageError."""
        ...

    def steps(self) -> list[int]:
        """Of all published checkpoints, rising; they need not verify."""
        ...

    def draft(self, step: int, attempt: str) -> Folder:
        """The folder that the ranks fill; made by whoever comes first."""
        ...

    def published(self, step: int) -> Folder: ...

    def publish(self, step: int, attempt: str) -> None:
        """Make the draft, which holds a manifest, the checkpoint of its step. Raises OSError; never overwrites."""
        ...

    def discard(self, step: int, attempt: str) -> None:
        """Drop a draft."""
        ...

    def remove(self, step: int) -> None:
        """Delete a published checkpoint; at no moment is there half of one."""
        ...

    def set_aside(self, step: int) -> None:
        """Rename a published checkpoint so that it isn't one any more; nothing is deleted."""
        ...


def step_name(step: int) -> str:
    return f"step-{step}"


def step_of(name: str) -> int | None:
    """The step of a published checkpoint's folder; None: it is something else."""
    found = _STEP.fullmatch(name)
    return int(found[1]) if found else None


def read_small(folder: Folder, name: str, max_bytes: int) -> bytes:
    """A whole file of bounded size.

    Raises:
        CheckpointError: it can't be read or is larger.
    """
    where = f"{folder.name}/{name}"
    with folder.open(name) as file:
        size = file.seek(0, 2)
        if size > max_bytes:
            raise CheckpointError(f"{where} is larger than {max_bytes} bytes; no checkpoint has such a one")
        return bytes(read_at(file, 0, size, where))


def read_at(file: BinaryIO, begin: int, length: int, where: str) -> bytearray:
    """`length` bytes, which the caller knows to be there; zeros where the file ends early after all.

    Raises:
        CheckpointError: they can't be read.
    """
    data = bytearray(length)
    filled = 0
    try:
        file.seek(begin)
        while filled < length and (part := file.read(length - filled)):
            data[filled : filled + len(part)] = part
            filled += len(part)
    except OSError as error:
        raise CheckpointError(f"{where} can't be read at byte {begin + filled}: {error}") from error
    return data
