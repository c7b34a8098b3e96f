"""data: from an entry of data.train to its sources: text, tokens of another format, or ready token folders.

A source has one type, the name by which metrics count it: in a folder of folders of tokens (InternEvo's layout, or
token folders) the name of the inner folder, else its own name. What isn't a token folder yet is work in pieces, which
prepare does in one process and `data prepare` in many.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from internevo_engine.data.arrays import Tokens
from internevo_engine.data.corpora import TextCorpus, fingerprint_of, walk
from internevo_engine.data.formats import is_token_folder
from internevo_engine.data.internevo import META, InternEvoPiece, find_types
from internevo_engine.data.megatron import MAGIC, MegatronPiece
from internevo_engine.data.tokenizers import Tokenizer


class Piece(Protocol):
    """A part of a source that one process turns into tokens."""

    @property
    def num_bytes(self) -> int: ...

    def encoded(self, tokenizer: Tokenizer | None, num_threads: int) -> Iterator[tuple[Tokens, int]]:
        """Tokens of each document (arrays.Tokens), and the UTF-8 bytes that they count, 0 where unknown."""
        ...


@dataclass(frozen=True)
class TokenFolder:
    """Ready to be mapped."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def type(self) -> str:
        return self.path.absolute().name


@dataclass(frozen=True)
class ForeignTokens:
    """Tokens in another format; no tokenizer is asked."""

    name: str
    type: str
    num_bytes: int
    fingerprint: str
    is_masked: bool
    """Whether some tokens are not counted."""
    parts: tuple[Piece, ...]

    @property
    def needs_tokenizer(self) -> bool:
        return False

    def pieces(self, piece_bytes: int) -> Iterable[Piece]:
        """In order; a file is not cut."""
        return self.parts


Unready = TextCorpus | ForeignTokens
Source = TokenFolder | Unready


def open_entry(name: str, text_key: str = "text", chat: str | None = None) -> tuple[Source, ...]:
    """The sources of one entry, sorted by type.

    Raises:
        DataError: nothing is there, or nothing that can be read.
    """
    for find in _FINDERS:
        if sources := tuple(find(Path(name))):
            return sources
    return (TextCorpus.open(name, text_key, chat),)


def _token_folders(path: Path) -> Iterator[TokenFolder]:
    if is_token_folder(path):
        yield TokenFolder(path)
    elif path.is_dir():
        yield from (TokenFolder(inner) for inner in sorted(path.iterdir()) if is_token_folder(inner))


def _internevo(path: Path) -> Iterator[ForeignTokens]:
    for kind, files in find_types(path).items():
        name = str(path) if path.is_file() else str(path / kind)
        metas = [Path(f"{file}{META}") for file in files]
        yield _foreign(name, kind, files, metas, [InternEvoPiece(file) for file in files], is_masked=True)


def _megatron(path: Path) -> Iterator[ForeignTokens]:
    """PREFIX, PREFIX.bin, PREFIX.idx, or a folder of such pairs."""
    indices = walk(path) if path.is_dir() else (path.with_suffix(".idx"), Path(f"{path}.idx"))
    for index in sorted({file for file in indices if file.suffix == ".idx" and _is_megatron(file)}):
        binary = index.with_suffix(".bin")
        yield _foreign(str(binary), index.stem, [binary], [index], [MegatronPiece(binary)], is_masked=False)


def _is_megatron(index: Path) -> bool:
    if not index.is_file():
        return False
    with index.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _foreign(
    name: str, kind: str, files: list[Path], indices: list[Path], parts: Iterable[Piece], *, is_masked: bool
) -> ForeignTokens:
    parts = tuple(parts)
    num_bytes = sum(part.num_bytes for part in parts)
    return ForeignTokens(name, kind, num_bytes, fingerprint_of([*files, *indices]), is_masked, parts)


_FINDERS: tuple[Callable[[Path], Iterator[Source]], ...] = (_token_folders, _internevo, _megatron)
"""The first that finds something decides; else it is text."""
