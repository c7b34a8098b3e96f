"""interop: what a sentencepiece .model file says, read from its bytes: pieces, scores, and how text is prepared.

The library tells pieces and scores but not the settings that decide whether another tokenizer can equal it. Hands
`Pieces` to interop/hf_tokenizer.py.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from internevo_engine.errors import DataError

# Field numbers of sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_KIND = 1, 2, 3
_TRAINER_MODEL_TYPE, _TRAINER_BYTE_FALLBACK = 3, 35
_NORMALIZER_CHARSMAP, _NORMALIZER_DUMMY_PREFIX, _NORMALIZER_EXTRA_SPACES = 2, 3, 4
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of a piece."""
_BPE = 2


@dataclass(frozen=True)
class Piece:
    """A row of the vocabulary."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class Pieces:
    """A BPE model whose text is not normalized."""

    pieces: tuple[Piece, ...]
    byte_fallback: bool
    adds_prefix: bool
    """A space is put in front of every text."""


def read_pieces(path: Path) -> Pieces:
    """Read a .model file.

    Raises:
        DataError: damaged, no BPE, or text is normalized, which tokenizer.json can't repeat exactly.
    """
    try:
        fields = list(_fields(path.read_bytes()))
        trainer, normalizer = (_settings(fields, number) for number in (_TRAINER, _NORMALIZER))
        pieces = tuple(_piece(value) for number, value in fields if number == _PIECES and isinstance(value, bytes))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (ValueError, IndexError, struct.error) as error:
        raise DataError(f"{path} is not a sentencepiece model: {error}") from error
    if trainer.get(_TRAINER_MODEL_TYPE, 1) != _BPE:
        raise DataError(f"{path} is not a BPE model; only those can become a tokenizer.json that equals them")
    if normalizer.get(_NORMALIZER_CHARSMAP) or normalizer.get(_NORMALIZER_EXTRA_SPACES, 1):
        raise DataError(
            f"{path} normalizes text or removes spaces, which tokenizer.json can't repeat exactly; train it with "
            "normalization_rule_name=identity and remove_extra_whitespaces=false, as data.tokenizer=train does"
        )
    return Pieces(
        pieces,
        byte_fallback=bool(trainer.get(_TRAINER_BYTE_FALLBACK, 0)),
        adds_prefix=bool(normalizer.get(_NORMALIZER_DUMMY_PREFIX, 1)),
    )


Value = int | bytes


def _settings(fields: list[tuple[int, Value]], number: int) -> dict[int, Value]:
    """Fields of a sub-message; the last one counts."""
    return {
        key: value for found, raw in fields if found == number and isinstance(raw, bytes) for key, value in _fields(raw)
    }


def _piece(raw: bytes) -> Piece:
    fields = dict(_fields(raw))
    text, score, kind = fields.get(_PIECE_TEXT, b""), fields.get(_PIECE_SCORE, b"\0" * 4), fields.get(_PIECE_KIND, 1)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or not isinstance(kind, int):
        raise ValueError("a piece has fields of wrong types")
    return Piece(text.decode(), struct.unpack("<f", score)[0], kind)


def _fields(raw: bytes) -> Iterator[tuple[int, Value]]:
    """Fields of a protocol buffers message: number and value; bytes for all but varints."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        match key & 7:
            case 0:
                value, at = _varint(raw, at)
                yield key >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, at = _varint(raw, at)
            case 5:
                size = 4
            case kind:
                raise ValueError(f"field of kind {kind} at byte {at}")
        if at + size > len(raw):
            raise ValueError(f"a field ends at byte {at + size} of {len(raw)}")
        yield key >> 3, raw[at : at + size]
        at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """Value and the place after it; at most 64 bits."""
    value = 0
    for shift in range(0, 64, 7):
        byte = raw[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
    raise ValueError(f"a number of more than 64 bits at byte {at}")
