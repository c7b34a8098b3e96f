"""data: arrays of token ids, and how files of them are mapped. Beneath all formats.

An id that is read but not counted in the loss is stored as its complement: ~id, so that id 0 can be masked too.
"""

from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from internevo_engine.errors import DataError

Tokens = npt.NDArray[np.integer]
"""Token ids, complemented where they are not counted."""
LARGEST_ID = 2**31 - 2
"""What fits into int32 beside its complement, and leaves room for a vocabulary that is one larger."""


def token_ids(tokens: Tokens) -> Tokens:
    """The ids of stored tokens, whether they are counted or not; a copy."""
    return np.where(tokens < 0, ~tokens, tokens)


def map_array(path: Path) -> npt.NDArray[Any]:
    """Map a .npy file of numbers. Nothing is allocated for what its header claims, and nothing is unpickled.

    Raises:
        DataError: the file isn't there, isn't such an array, or hasn't the size that its header says.
    """
    size = size_of(path)
    try:
        shape, is_fortran, dtype, offset = _header(path)
    except (ValueError, TypeError, OverflowError, SyntaxError, RecursionError, KeyError, TokenError) as error:
        raise DataError(
            f"{path} ({size} bytes) is no NumPy array: {str(error).splitlines()[0]}; copy it again"
        ) from error
    numel = prod(shape)
    if dtype.kind not in "iuf" or min(shape, default=0) < 0 or offset + numel * dtype.itemsize != size:
        raise DataError(f"{path} has {size} bytes, its header claims {dtype} of shape {shape}; copy it again")
    return map_raw(path, dtype, numel, offset).reshape(shape, order="F" if is_fortran else "C")


def _header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether the first dim runs fastest, dtype, and where the data begins."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"version {version} of the format is not known")
        return *_HEADERS[version](file), file.tell()


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def map_raw(path: Path, dtype: np.dtype[Any], count: int, offset: int = 0) -> npt.NDArray[Any]:
    """Map `count` raw values from byte `offset` on, which the caller has checked against the file's size."""
    if not count:
        return np.empty(0, dtype)
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,)))


def size_of(path: Path) -> int:
    """Bytes of a file.

    Raises:
        DataError: it isn't there.
    """
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; copy it to its place") from error
