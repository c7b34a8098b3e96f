"""data: a Hugging Face tokenizer.json behind the calls that data/tokenizers.py makes of sentencepiece (extra [hf]).

Marks that somebody spells out in a text stay text, as with sentencepiece's control pieces.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internevo_engine.errors import DataError

if TYPE_CHECKING:
    import tokenizers

SETTINGS = "generation_config.json"
"""Says which ids are bos and eos; stands beside tokenizer.json."""


def parse(raw: bytes, named: str) -> "tokenizers.Tokenizer":
    """The content of a tokenizer.json, which errors call `named`.

    Raises:
        DataError: the package is missing, or the file is no tokenizer.
    """
    try:
        import tokenizers  # optional: comes with the extras [hf] and [chat]
    except ImportError:
        raise DataError(f"{named} needs the package tokenizers: pip install 'internevo-engine[hf]'") from None
    try:
        return tokenizers.Tokenizer.from_str(raw.decode())
    except Exception as error:  # the package raises nothing more special
        raise DataError(
            f"{named} is not a tokenizer.json: it can't be read as a tokenizer ({error}); copy it again"
        ) from error


class JsonProcessor:
    """One tokenizer.json, read by the package tokenizers."""

    def __init__(self, path: Path, raw: bytes) -> None:
        """Raises DataError as `parse`."""
        self._tokenizer = parse(raw, f"data.tokenizer={path}")
        self._tokenizer.encode_special_tokens = True
        self._ids = _bos_and_eos(path.parent / SETTINGS)

    def get_piece_size(self) -> int:
        """Ids are below it."""
        return max(self._tokenizer.get_vocab().values()) + 1

    def bos_id(self) -> int:
        return self._ids[0]

    def eos_id(self) -> int:
        return self._ids[1]

    def unk_id(self) -> int:
        """What `piece_to_id` gives for a name that no piece has."""
        return -1

    def piece_to_id(self, name: str) -> int:
        token = self._tokenizer.token_to_id(name)
        return self.unk_id() if token is None else token

    def encode(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """One after the other: threads of this package don't survive the forks of `graph.compile`."""
        return [self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens)


def _bos_and_eos(settings: Path) -> tuple[int, int]:
    """Where there are several ends, the first is that of a document; -1: there is none."""
    try:
        found: dict[str, Any] = json.loads(settings.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{settings} must say which ids are bos and eos ({error}); `convert engine` writes it"
        ) from error
    ids = (found.get(f"{name}_token_id") for name in ("bos", "eos"))
    bos, eos = (first if isinstance(first := _first(value), int) else -1 for value in ids)
    return bos, eos


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value
