"""data: Megatron-LM's indexed datasets, in. Beside corpora: tokens come from here instead of text.

PREFIX.bin   tokens of all sequences, raw little-endian
PREFIX.idx   magic, u64 version 1, u8 dtype, u64 sequences S, u64 documents D + 1,
             i32 lengths [S], i64 byte offsets [S], i64 first sequence of each document, and S as the last [D + 1],
             and in multimodal sets i8 modes [S]
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from internevo_engine.data.arrays import LARGEST_ID, Tokens, map_raw, size_of
from internevo_engine.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""By Megatron's code; 6 and 7 are floats, which are no tokens."""


@dataclass(frozen=True)
class Index:
    """What PREFIX.idx says, checked against PREFIX.bin."""

    dtype: np.dtype[Any]
    lengths: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]
    """[D + 1], rising from 0 to the number of sequences."""


@dataclass(frozen=True)
class MegatronPiece:
    """PREFIX.bin and PREFIX.idx."""

    path: Path
    """PREFIX.bin"""

    @property
    def num_bytes(self) -> int:
        return size_of(self.path)

    def encoded(self, tokenizer: object, num_threads: int) -> Iterator[tuple[Tokens, int]]:
        """Every document, as it is stored; how many bytes of text it was isn't known: 0.

        Raises:
            DataError: .idx leads out of .bin, or an id is negative or beyond int32.
        """
        index = read_index(self.path.with_suffix(".idx"))
        raw = map_raw(self.path, np.dtype(np.uint8), self.num_bytes)
        ends = index.offsets + index.lengths.astype(np.int64) * index.dtype.itemsize
        for number, (first, last) in enumerate(zip(index.documents[:-1], index.documents[1:], strict=True)):
            parts = [raw[index.offsets[n] : ends[n]].view(index.dtype) for n in range(first, last)]
            document = np.concatenate([np.empty(0, np.int64), *parts])
            if not len(document):
                continue
            if document.min() < 0 or document.max() > LARGEST_ID:
                raise DataError(
                    f"{self.path}: document {number} holds ids from {document.min()} to {document.max()}; "
                    f"ids are between 0 and {LARGEST_ID}: copy the files again"
                )
            yield document, 0


def read_index(path: Path) -> Index:
    """Read PREFIX.idx.

    Raises:
        DataError: it isn't one, has another size than its header says, or leads out of PREFIX.bin.
    """
    size, bin_size = size_of(path), size_of(path.with_suffix(".bin"))
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(MAGIC):
        raise DataError(f"{path} ({size} bytes) does not begin like a Megatron index; copy it again")
    _, version, code, num_sequences, num_documents = _HEADER.unpack(header)
    plain = _HEADER.size + 12 * num_sequences + 8 * num_documents
    if version != 1 or code not in _DTYPES or size not in (plain, plain + num_sequences):
        raise DataError(
            f"{path}: version {version}, dtype {code}, {num_sequences} sequences and {num_documents} document borders "
            f"need {plain} bytes, the file has {size}; it was cut short or changed (version 1, dtype one of "
            f"{', '.join(map(str, _DTYPES))})"
        )
    begins = np.cumsum([_HEADER.size, 4 * num_sequences, 8 * num_sequences]).tolist()
    index = Index(
        np.dtype(_DTYPES[code]),
        map_raw(path, np.dtype("<i4"), num_sequences, begins[0]),
        map_raw(path, np.dtype("<i8"), num_sequences, begins[1]),
        map_raw(path, np.dtype("<i8"), num_documents, begins[2]),
    )
    _check(path, index, bin_size)
    return index


def _check(path: Path, index: Index, bin_size: int) -> None:
    lengths, offsets, documents = index.lengths.astype(np.int64), index.offsets, index.documents
    room = (bin_size - offsets) // index.dtype.itemsize
    wrong = (lengths < 0) | (offsets < 0) | (offsets > bin_size) | (lengths > room)
    if wrong.any():
        number = int(np.argmax(wrong))
        raise DataError(
            f"{path}: sequence {number} of {len(lengths)}: {lengths[number]} tokens from byte {offsets[number]} on are "
            f"not inside {path.stem}.bin of {bin_size} bytes; copy both files again"
        )
    if lengths.sum() * index.dtype.itemsize > bin_size:
        raise DataError(
            f"{path}: its sequences hold {lengths.sum()} tokens of {index.dtype.itemsize} bytes, {path.stem}.bin has "
            f"{bin_size} bytes: they overlap; copy both files again"
        )
    borders = documents[[0, -1]].tolist() if len(documents) else []
    if borders != [0, len(lengths)] or (np.diff(documents) < 0).any():
        raise DataError(
            f"{path}: document borders do not rise from 0 to the {len(lengths)} sequences; copy the file again"
        )
