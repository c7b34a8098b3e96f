"""interop: write a folder that appears whole or not at all, its tensors in shards of bounded size.

What every conversion ends in.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from safetensors.torch import save_file
from torch import Tensor

from internevo_engine.errors import StorageError
from internevo_engine.interop.tensors import INDEX

SHARD_BYTES = 2_000_000_000
"""Largest file of weights, unless one tensor is larger. A conversion holds one shard and one tensor in memory."""


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """A folder to fill; where the block ends it becomes `path`, where it fails nothing is left.

    Raises:
        StorageError: `path` is there already and not empty, or the disk can't be written.
    """
    partial = path.with_name(f"{path.name}.tmp-{uuid4().hex}")
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StorageError(f"{path} is there already; name another folder, or move it away")
        partial.mkdir(parents=True)
        yield partial
        for file in [*partial.iterdir(), partial]:
            _sync(file)
        partial.rename(path)
        _sync(path.parent)
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error.strerror}; free space or name another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES) -> int:
    """Write model.safetensors, or numbered shards and their index; returns the bytes of all tensors."""
    shards = list[tuple[Path, list[str]]]()
    total = 0
    for shard in _shards(tensors, shard_bytes):
        path = folder / f"{len(shards)}.safetensors"
        save_file(shard, path, metadata={"format": "pt"})
        path.chmod(folder.stat().st_mode & 0o666)  # safetensors lets only the owner read
        shards.append((path, list(shard)))
        total += sum(tensor.nbytes for tensor in shard.values())
    if len(shards) == 1:
        shards[0][0].rename(folder / "model.safetensors")
        return total
    weight_map = dict[str, str]()
    for number, (path, names) in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        path.rename(folder / name)
        weight_map |= dict.fromkeys(names, name)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return total


def write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _shards(tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard, size = dict[str, Tensor](), 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > shard_bytes:
            yield shard
            shard.clear()  # the receiver still holds it: a new one would be a second shard in memory
            size = 0
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
    yield shard


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
