"""data: InternEvo's tokenized folders, in and out. Beside corpora: tokens come from here instead of text.

    FOLDER/TYPE/**/NAME.bin        a line a sample: {"tokens": [...]}; a negative id is read, but not counted
    FOLDER/TYPE/**/NAME.bin.meta   .npy, integers [N, 2]: where each line begins, and how many tokens it holds

InternEvo's first tool wrote int32 offsets, which wrap around past 2 GiB: as lines follow each other, their differences
modulo 2**32 say where they are. Label 0 is not counted, for 0 has no negative.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from internevo_engine.data.arrays import LARGEST_ID, Tokens, map_array, size_of
from internevo_engine.data.records import LONGEST_LINE_BYTES, parse_json
from internevo_engine.errors import DataError

META = ".meta"
_FIRST_BYTES = b'{"tokens"'


@dataclass(frozen=True)
class InternEvoPiece:
    """One .bin file and its .meta."""

    path: Path

    @property
    def num_bytes(self) -> int:
        return size_of(self.path)

    def encoded(self, tokenizer: object, num_threads: int) -> Iterator[tuple[Tokens, int]]:
        """Every sample, in the order of the file; how many bytes of text it was isn't known: 0.

        Raises:
            DataError: .meta leads out of the file, or a line isn't what .meta says.
        """
        begins, counts = read_meta(self.path)
        with self.path.open("rb") as file:
            for number, (begin, count) in enumerate(zip(begins[:-1].tolist(), counts.tolist(), strict=True)):
                line = file.read(int(begins[number + 1]) - begin)
                yield _sample(line, count, f"{self.path}: sample {number}, byte {begin}"), 0


def find_types(path: Path) -> dict[str, list[Path]]:
    """The .bin files of each type: the name of the entry of folder `path` they lie in. Empty if there are none.

    Raises:
        DataError: a .bin of samples has no .meta.
    """
    types: dict[str, list[Path]] = {}
    for file in [path] if path.is_file() else sorted(path.rglob("*.bin")):
        if _has_meta(file):
            first = path if path.is_file() else path / file.relative_to(path).parts[0]
            types.setdefault(first.name.removesuffix(".bin"), []).append(file)
    return types


def _has_meta(file: Path) -> bool:
    if Path(f"{file}{META}").is_file():
        return True
    with file.open("rb") as opened:
        if opened.read(len(_FIRST_BYTES)) == _FIRST_BYTES:
            raise DataError(f"{file} holds samples of tokens, but {file.name}{META} is not beside it; copy both")
    return False


def read_meta(path: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where the N lines of `path` begin, and the end of the last [N + 1]; how many tokens each holds [N].

    Raises:
        DataError: .meta isn't there, isn't such an array, or leads out of the file.
    """
    meta, size = Path(f"{path}{META}"), size_of(path)
    array = map_array(meta)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind != "i" or array.dtype.itemsize not in (4, 8):
        raise DataError(f"{meta} holds {array.dtype}{array.shape}, not int32 or int64 [samples, 2]; make it anew")
    begins = np.append(_unwrapped(array[:, 0]), size)
    counts = array[:, 1].astype(np.int64)
    lengths = np.diff(begins)
    # A token takes a digit and a comma at least, so a count that the line can't hold is refused before it is read.
    wrong = (lengths <= 0) | (lengths > LONGEST_LINE_BYTES) | (counts < 0) | (2 * counts > lengths)
    if begins[0] != 0 or wrong.any():
        number = int(np.argmax(wrong)) if begins[0] == 0 else 0
        raise DataError(
            f"{meta}: sample {number} of {len(counts)} is said to begin at byte {begins[number]} with "
            f"{counts[number]} tokens, the next at byte {begins[number + 1]} of {size} in {path.name}; "
            f"one of the two files was cut short or changed: copy both again"
        )
    return begins, counts


def write_internevo(path: Path, documents: Iterable[Tokens]) -> None:
    """Write `path` and its .meta (int64) as InternEvo reads them; ids not counted become negative."""
    meta: list[tuple[int, int]] = []
    offset = 0
    with path.open("wb") as file:
        for document in documents:
            ids = np.where(document < 0, -(~document), document).tolist()
            meta.append((offset, len(ids)))
            offset += file.write(json.dumps({"tokens": ids}).encode() + b"\n")
    with Path(f"{path}{META}").open("wb") as file:
        np.save(file, np.array(meta, np.int64).reshape(-1, 2))


def _unwrapped(offsets: Tokens) -> npt.NDArray[np.int64]:
    if offsets.dtype.itemsize == 8 or not len(offsets):
        return offsets.astype(np.int64)
    steps = np.diff(offsets.astype(np.int64)) % (1 << 32)
    return np.cumsum(np.append(offsets[:1].astype(np.int64), steps))


def _sample(line: bytes, count: int, where: str) -> Tokens:
    record = parse_json(line, where)
    tokens = record.get("tokens") if isinstance(record, dict) else None
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise DataError(f'{where}: not {{"tokens": [integers]}}; the file is no InternEvo .bin, or was changed')
    if len(tokens) != count or not count:
        raise DataError(f"{where} holds {len(tokens)} tokens, .meta says {count}; samples have one at least")
    if max(tokens) > LARGEST_ID or min(tokens) < -LARGEST_ID:
        raise DataError(f"{where}: token {max(tokens, key=abs)} is beyond {LARGEST_ID}; the file was changed")
    ids = np.array(tokens, np.int64)
    return np.where(ids <= 0, ~-ids, ids)
