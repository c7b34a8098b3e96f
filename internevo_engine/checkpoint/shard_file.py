"""checkpoint: one rank's safetensors file, written and read in chunks, each with its SHA-256.

Any safetensors reader opens it; its tensors are called `exp_avg/layers.0.norm.weight[128:256]`. We don't read its
header: the manifest says where everything is, and a chunk reaches a tensor only after its digest was compared.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import torch

from internevo_engine.checkpoint.manifest import ELEMENT_BYTES, FileEntry, StretchEntry
from internevo_engine.checkpoint.storage import Folder, read_at
from internevo_engine.checkpoint.view import ShardedView
from internevo_engine.errors import CheckpointError

CHUNK_BYTES = 4 << 20
"""Small, as a reader of a few elements reads one; not too small, as each has a digest of 67 bytes in the manifest."""


@dataclass(frozen=True)
class Wanted:
    """A range of a file's data, and where it goes."""

    begin: int
    """In bytes behind the header."""
    target: torch.Tensor
    """Flat, uint8, on any device."""

    @property
    def end(self) -> int:
        return self.begin + self.target.numel()


def header_of(view: ShardedView) -> bytes:
    """The safetensors header of a rank's file: length, then JSON, padded so that the data is aligned to 8 bytes."""
    tensors: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for stretch in view.stretches:
        for state in view.states:
            begin, end = end, end + stretch.length * ELEMENT_BYTES
            name = f"{state}/{view.params[stretch.param].name}[{stretch.offset}:{stretch.offset + stretch.length}]"
            tensors[name] = {"dtype": "F32", "shape": [stretch.length], "data_offsets": [begin, end]}
    text = json.dumps(tensors, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_file(
    folder: Folder, name: str, view: ShardedView, data: memoryview, *, chunk_bytes: int, pace: Callable[[int], None]
) -> FileEntry:
    """Write a rank's file and make it durable.

    Args:
        data: the stretches' states one after the other.
        pace: called with the number of bytes after each chunk; may sleep.

    Raises:
        OSError: it can't be written.
    """
    header = header_of(view)
    digests = []
    with folder.create(name) as write:
        write(memoryview(header))
        for begin in range(0, len(data), chunk_bytes):
            chunk = data[begin : begin + chunk_bytes]
            write(chunk)
            digests.append(hashlib.sha256(chunk).hexdigest())
            pace(len(chunk))
    return FileEntry(
        name=name,
        size=len(header) + len(data),
        header_sha256=hashlib.sha256(header).hexdigest(),
        chunk_sha256=tuple(digests),
        stretches=tuple(StretchEntry(param=s.param, offset=s.offset, length=s.length) for s in view.stretches),
    )


def read_file(
    folder: Folder, entry: FileEntry, num_states: int, wanted: Sequence[Wanted] | None, *, chunk_bytes: int
) -> None:
    """Read the header and the chunks that hold `wanted` (None: all, and keep nothing), compare digests, fill targets.

    Raises:
        CheckpointError: the file isn't what was written.
    """
    data_bytes = entry.data_bytes(num_states)
    header_bytes = entry.size - data_bytes
    where = f"{folder.name}/{entry.name}"
    with folder.open(entry.name) as file:
        size = file.seek(0, 2)
        if size != entry.size:
            raise CheckpointError(
                f"{where} has {size} bytes, the manifest says {entry.size}: it was cut short or changed"
            )
        _read(file, where, 0, header_bytes, entry.header_sha256)
        for number in _chunks_of(wanted, len(entry.chunk_sha256), chunk_bytes):
            begin = number * chunk_bytes
            length = min(chunk_bytes, data_bytes - begin)
            chunk = _read(file, where, header_bytes + begin, length, entry.chunk_sha256[number])
            _hand_out(chunk, begin, wanted or ())


def _chunks_of(wanted: Sequence[Wanted] | None, num_chunks: int, chunk_bytes: int) -> Iterable[int]:
    if wanted is None:
        return range(num_chunks)
    return sorted({number for w in wanted for number in range(w.begin // chunk_bytes, -(-w.end // chunk_bytes))})


def _read(file: BinaryIO, where: str, begin: int, length: int, digest: str) -> bytearray:
    data = read_at(file, begin, length, where)
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise CheckpointError(
            f"{where}: bytes {begin} to {begin + length} have SHA-256 {found}, the manifest says {digest}: "
            "the file was changed, or belongs to another checkpoint"
        )
    return data


def _hand_out(chunk: bytearray, chunk_begin: int, wanted: Sequence[Wanted]) -> None:
    source = torch.frombuffer(chunk, dtype=torch.uint8)
    chunk_end = chunk_begin + len(chunk)
    for range_ in wanted:
        begin, end = max(chunk_begin, range_.begin), min(chunk_end, range_.end)
        if begin < end:
            range_.target[begin - range_.begin : end - range_.begin].copy_(
                source[begin - chunk_begin : end - chunk_begin]
            )
