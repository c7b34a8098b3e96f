"""Megatron's indexed datasets give their documents."""

import struct
from pathlib import Path

import numpy as np
import pytest

from internevo_engine.data.megatron import MAGIC, MegatronPiece
from internevo_engine.data.sources import ForeignTokens, open_entry

DOCUMENTS = [[[5, 6], [7]], [[8, 9, 10]], [[]], [[11]]]
"""Of sequences."""


def write(prefix: Path, *, code: int = 8, dtype: str = "<u2", modes: bool = False) -> Path:
    """As Megatron-LM's builder does."""
    sequences = [sequence for document in DOCUMENTS for sequence in document]
    lengths = [len(sequence) for sequence in sequences]
    width = np.dtype(dtype).itemsize
    prefix.with_suffix(".bin").write_bytes(b"".join(np.array(sequence, dtype).tobytes() for sequence in sequences))
    borders = np.cumsum([0, *map(len, DOCUMENTS)])
    prefix.with_suffix(".idx").write_bytes(
        MAGIC
        + struct.pack("<QBQQ", 1, code, len(sequences), len(borders))
        + np.array(lengths, "<i4").tobytes()
        + (np.cumsum([0, *lengths])[:-1] * width).astype("<i8").tobytes()
        + borders.astype("<i8").tobytes()
        + bytes(len(sequences)) * modes
    )
    return prefix.with_suffix(".bin")


@pytest.mark.parametrize(("code", "dtype"), [(8, "<u2"), (4, "<i4"), (5, "<i8"), (1, "<u1")])
@pytest.mark.parametrize("modes", [False, True])
def test_documents_are_the_sequences_between_borders(tmp_path: Path, code: int, dtype: str, modes: bool) -> None:
    piece = MegatronPiece(write(tmp_path / "set", code=code, dtype=dtype, modes=modes))
    documents = [document.tolist() for document, _ in piece.encoded(None, 1)]
    assert documents == [[5, 6, 7], [8, 9, 10], [11]]


def test_a_set_is_found_by_any_of_its_names(tmp_path: Path) -> None:
    path = write(tmp_path / "my_text_document")
    for name in (path, path.with_suffix(".idx"), path.with_suffix(""), tmp_path):
        (source,) = open_entry(str(name))
        assert isinstance(source, ForeignTokens)
        assert (source.type, source.is_masked, source.num_bytes) == ("my_text_document", False, path.stat().st_size)
