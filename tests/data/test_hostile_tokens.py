"""Files that lie are refused with a DataError, before anything is allocated for what they claim."""

import json
import resource
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from internevo_engine.data.formats import INDEX, MANIFEST, TOKENS, TokenFile, write_tokens
from internevo_engine.data.internevo import META, InternEvoPiece, write_internevo
from internevo_engine.data.megatron import MAGIC, MegatronPiece
from internevo_engine.data.packing import PackedCorpus
from internevo_engine.errors import DataError

HUGE = 1 << 60
DOCUMENTS = [np.array([1, 7, 8, 2]), np.array([1, 2]), np.array([1, 99, 5, 6, 2])]


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """512 MB more than now: whoever believes a claim of 2**60 dies."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def header(descr: str, shape: str) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.ljust(117).encode() + b"\n"


def meta(rows: list[list[int]], dtype: str = "<i8") -> bytes:
    return header(f"'{dtype}'", f"({len(rows)}, 2)") + np.array(rows, dtype).tobytes()


LINES = b'{"tokens": [1, 7, 8, 2]}\n{"tokens": [1, 2]}\n'
GOOD = [[0, 4], [25, 2]]
INTERNEVO: dict[str, tuple[bytes, bytes]] = {
    "offset beyond the file": (LINES, meta([[0, 4], [HUGE, 2]])),
    "negative offset": (LINES, meta([[0, 4], [-25, 2]])),
    "offsets that fall": (LINES, meta([[25, 2], [0, 4]])),
    "first sample not at the start": (LINES, meta([[3, 4], [25, 2]])),
    "negative count": (LINES, meta([[0, 4], [25, -2]])),
    "count of 2**60": (LINES, meta([[0, HUGE], [25, 2]])),
    "count that is wrong": (LINES, meta([[0, 3], [25, 2]])),
    "shape of 2**60": (LINES, header("'<i8'", f"({HUGE}, 2)")),
    "shape of 2**80": (LINES, header("'<i8'", f"({1 << 80}, 2)")),
    "negative shape": (LINES, header("'<i8'", "(-2, 2)") + bytes(64)),
    "three columns": (LINES, header("'<i8'", "(2, 3)") + bytes(48)),
    "floats": (LINES, header("'<f8'", "(2, 2)") + bytes(32)),
    "pickled objects": (LINES, header("'|O'", "(2, 2)") + bytes(32)),
    "header that is code": (LINES, header("__import__('os')", "(2, 2)") + bytes(32)),
    "header of brackets": (LINES, b"\x93NUMPY\x02\x00" + struct.pack("<I", 9000) + b"(" * 9000),
    "no array": (LINES, b"PK\x03\x04" + bytes(100)),
    "empty meta": (LINES, b""),
    "bin cut short": (LINES[:30], meta(GOOD)),
    "bin with more": (LINES + b"x" * 20, meta(GOOD)),
    "no JSON": (b"x" * 43, meta(GOOD)),
    "deep JSON": (b"[" * 100_000, meta([[0, 4]])),
    "long number": (b'{"tokens": [' + b"9" * 6000 + b"]}", meta([[0, 1]])),
    "id of 2**60": (b'{"tokens": [%d]}' % HUGE, meta([[0, 1]])),
    "id of -2**60": (b'{"tokens": [%d]}' % -HUGE, meta([[0, 1]])),
    "fractions": (b'{"tokens": [1.5, 2]}', meta([[0, 2]])),
    "booleans": (b'{"tokens": [true, 2]}', meta([[0, 2]])),
    "nested": (b'{"tokens": [[1], 2]}', meta([[0, 2]])),
    "another key": (b'{"text": "hi there"}', meta([[0, 2]])),
    "sample without tokens": (b'{"tokens": []}', meta([[0, 0]])),
}


@pytest.mark.parametrize("name", INTERNEVO)
def test_internevo_files_that_lie(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(INTERNEVO[name][0])
    Path(f"{path}{META}").write_bytes(INTERNEVO[name][1])
    with pytest.raises(DataError, match=r"a\.bin"):
        list(InternEvoPiece(path).encoded(None, 1))


def index(
    *, magic: bytes = MAGIC, version: int = 1, code: int = 4, sequences: int = 2, borders: int = 3,
    lengths: tuple[int, ...] = (4, 2), offsets: tuple[int, ...] = (0, 16), documents: tuple[int, ...] = (0, 1, 2),
) -> bytes:  # fmt: skip
    arrays = (np.array(lengths, "<i4"), np.array(offsets, "<i8"), np.array(documents, "<i8"))
    head = magic + struct.pack("<QBQQ", version, code, sequences, borders)
    return head + b"".join(array.tobytes() for array in arrays)


MEGATRON: dict[str, bytes] = {
    "another magic": index(magic=b"XXIDIDX\x00\x00"),
    "version 2": index(version=2),
    "floats": index(code=7),
    "dtype 200": index(code=200),
    "2**60 sequences": index(sequences=HUGE),
    "2**60 borders": index(borders=HUGE),
    "one sequence less": index(sequences=1),
    "negative length": index(lengths=(4, -2)),
    "length beyond the file": index(lengths=(4, 2**31 - 1)),
    "offset of 2**60": index(offsets=(0, HUGE)),
    "negative offset": index(offsets=(0, -16)),
    "sequences that overlap": index(lengths=(6, 6), offsets=(0, 0)),
    "borders that fall": index(documents=(0, 2, 1)),
    "border of 2**60": index(documents=(0, HUGE, 2)),
    "borders that end early": index(documents=(0, 1, 1)),
    "no border": index(borders=0, documents=()),
    "cut short": index()[:50],
    "only a header": index()[:20],
    "empty": b"",
}


@pytest.mark.parametrize("name", MEGATRON)
def test_megatron_files_that_lie(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.bin").write_bytes(np.array([1, 7, 8, 2, 1, 2], "<i4").tobytes())
    (tmp_path / "a.idx").write_bytes(index())
    assert len(list(MegatronPiece(tmp_path / "a.bin").encoded(None, 1))) == 2
    (tmp_path / "a.idx").write_bytes(MEGATRON[name])
    with pytest.raises(DataError, match=r"a\.idx"):
        list(MegatronPiece(tmp_path / "a.bin").encoded(None, 1))


def test_megatron_ids_that_are_negative(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(np.array([1, 7, 8, 2, -1, 2], "<i4").tobytes())
    (tmp_path / "a.idx").write_bytes(index())
    with pytest.raises(DataError, match="document 1 holds ids from -1 to 2"):
        list(MegatronPiece(tmp_path / "a.bin").encoded(None, 1))


def _set(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _overwrite(values: list[int]) -> Callable[[Path], object]:
    return lambda folder: (folder / INDEX).write_bytes(header("'<i8'", "(4,)") + np.array(values, "<i8").tobytes())


FOLDERS: dict[str, Callable[[Path], object]] = {
    "index beyond the tokens": _overwrite([0, 4, HUGE, 11]),
    "index that falls": _overwrite([0, 6, 4, 11]),
    "negative index": _overwrite([0, -4, 6, 11]),
    "index that ends early": _overwrite([0, 4, 6, 9]),
    "index of objects": lambda folder: (folder / INDEX).write_bytes(header("'|O'", "(4,)") + bytes(32)),
    "index of 2**60": lambda folder: (folder / INDEX).write_bytes(header("'<i8'", f"({HUGE},)") + bytes(32)),
    "2**60 tokens": lambda folder: _set(folder / MANIFEST, num_tokens=HUGE),
    "-1 documents": lambda folder: _set(folder / MANIFEST, num_documents=-1),
    "2**60 documents": lambda folder: _set(folder / MANIFEST, num_documents=HUGE),
    "unknown dtype": lambda folder: _set(folder / MANIFEST, dtype="|O"),
    "unknown key": lambda folder: _set(folder / MANIFEST, run="rm"),
    "manifest of brackets": lambda folder: (folder / MANIFEST).write_text("[" * 100_000),
    "tokens cut short": lambda folder: (folder / TOKENS).write_bytes(b"x"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_token_folders_that_lie(tmp_path: Path, name: str) -> None:
    with write_tokens(tmp_path / "t", 100, source="test") as writer:
        for document in DOCUMENTS:
            writer.add(document, 1)
    TokenFile.open(tmp_path / "t", 100)
    FOLDERS[name](tmp_path / "t")
    with pytest.raises(DataError, match=str(tmp_path / "t")):
        TokenFile.open(tmp_path / "t", 100)


@pytest.mark.parametrize("seed", range(25))
def test_damage_anywhere_is_an_error_or_harmless(tmp_path: Path, seed: int) -> None:
    """Some bytes of the files of every format are overwritten: what is read is in range, or it is refused."""
    draw = np.random.default_rng(seed)
    write_internevo(tmp_path / "a.bin", DOCUMENTS)
    (tmp_path / "m.bin").write_bytes(np.concatenate(DOCUMENTS).astype("<i4").tobytes())
    (tmp_path / "m.idx").write_bytes(
        index(sequences=3, borders=4, lengths=(4, 2, 5), offsets=(0, 16, 24), documents=(0, 1, 2, 3))
    )
    with write_tokens(tmp_path / "t", 100, source="test") as writer:
        for document in DOCUMENTS:
            writer.add(document, 1)
    for path in [file for file in tmp_path.rglob("*") if file.is_file() and file.name != TOKENS]:
        raw = np.frombuffer(path.read_bytes(), np.uint8).copy()
        raw[draw.integers(0, len(raw), 3)] = draw.integers(0, 256, 3)
        path.write_bytes(raw.tobytes())
    for piece in (InternEvoPiece(tmp_path / "a.bin"), MegatronPiece(tmp_path / "m.bin")):
        with suppress(DataError):
            assert all(abs(int(t)) < 1 << 31 for document, _ in piece.encoded(None, 1) for t in document)
    with suppress(DataError):
        file = TokenFile.open(tmp_path / "t", 100)
        PackedCorpus([file], seq_len=4, micro_batch=1, seed=0).micro_batch(0, 0, 1)
