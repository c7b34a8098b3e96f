"""data: from the name of a corpus to its documents. The first step of data; tokenizers and formats take over the text.

A corpus is a named one (a row of NAMED_CORPORA), a UTF-8 text file (one document), a JSONL or parquet file (one
document a line or row) or a folder of such files. Text is taken as it is: no newline, space or byte order mark is
changed.
"""

import hashlib
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from internevo_engine.data.arrays import Tokens
from internevo_engine.data.chat import encode_documents
from internevo_engine.data.records import Document, decode, document_of, read_jsonl, read_parquet
from internevo_engine.data.tokenizers import Tokenizer
from internevo_engine.errors import DataError

_STDLIB_HELD_OUT = frozenset({"json", "email", "http"})
_STDLIB_SKIPPED = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages"})
_SNIFFED_BYTES = 8000
"""Git's rule: a file with a NUL among its first 8,000 bytes is binary."""
_BATCH_CHARS = 4_000_000
"""Text handed to the tokenizer at once; its threads share it."""


@dataclass(frozen=True)
class TextCorpus:
    """The files of one corpus, found but not yet read."""

    name: str
    """As the user wrote it."""
    files: tuple[Path, ...]
    """Sorted."""
    text_key: str
    """Key of the text in each line of a JSONL file and row of a parquet file."""
    chat: str | None
    """Template of data/chat.py by which records with turns are dialogues; None: all records are texts."""
    num_bytes: int
    """Size of the files on disk."""
    fingerprint: str
    """See fingerprint_of: cheap for any size, changed by any edit."""

    @classmethod
    def open(cls, name: str, text_key: str = "text", chat: str | None = None) -> "TextCorpus":
        """Find the files of `name`: a row of NAMED_CORPORA, a file or a folder.

        A folder gives all its files, recursively, but for hidden and binary ones.

        Raises:
            DataError: nothing is there, or no text file is in the folder.
        """
        files = tuple(sorted(NAMED_CORPORA[name]() if name in NAMED_CORPORA else _files_of(Path(name))))
        num_bytes = sum(path.stat().st_size for path in files)
        if not num_bytes:
            raise DataError(
                f"corpus '{name}' is empty: {len(files)} text files, 0 bytes; add text or name another corpus"
            )
        return cls(name, files, text_key, chat, num_bytes, fingerprint_of(files, text_key, chat))

    @property
    def needs_tokenizer(self) -> bool:
        return True

    @property
    def is_masked(self) -> bool:
        """Whether some tokens are not counted."""
        return self.chat is not None

    @property
    def type(self) -> str:
        """What metrics call it: the name of its file, without suffix, or of its folder."""
        path = Path(self.name).absolute()
        return path.stem if path.is_file() else path.name

    def pieces(self, piece_bytes: int) -> Iterator["TextPiece"]:
        """The corpus in order, cut into work for several processes; only JSONL is cut inside a file."""
        for path in self.files:
            size = path.stat().st_size
            step = piece_bytes if path.suffix == ".jsonl" else max(size, 1)
            for begin in range(0, size, step):
                yield TextPiece(path, begin, min(begin + step, size), self.text_key, self.chat)

    def documents(self) -> Iterator[Document]:
        """Yield every text that isn't empty, file by file.

        Raises:
            DataError: a file can't be read or isn't UTF-8, a JSONL line has no text, or all texts are empty.
        """
        found = False
        for piece in self.pieces(sys.maxsize):
            for document in piece.documents():
                found = True
                yield document
        if not found:
            raise DataError(
                f"corpus '{self.name}' is empty: {len(self.files)} files without text; add text or name another corpus"
            )


@dataclass(frozen=True)
class TextPiece:
    """A file, or the lines of a JSONL file that begin in bytes [begin, end)."""

    path: Path
    begin: int
    end: int
    text_key: str
    chat: str | None

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin

    def documents(self) -> Iterator[Document]:
        """Every text that isn't empty.

        Raises:
            DataError: the file can't be read or isn't UTF-8, or a record has no text.
        """
        try:
            for document in READERS.get(self.path.suffix, _read_text)(self):
                if document.text:
                    yield document
        except OSError as error:
            raise DataError(
                f"{self.path}: can't be read: {error.strerror}; mend it or take it out of the corpus"
            ) from error

    def encoded(self, tokenizer: Tokenizer | None, num_threads: int) -> Iterator[tuple[Tokens, int]]:
        """Tokens of each document, and the UTF-8 bytes that they count."""
        assert tokenizer is not None, "text without a tokenizer is refused before"
        for batch in _batches(self.documents()):
            yield from encode_documents(batch, self.chat, tokenizer, num_threads)


def _read_text(piece: TextPiece) -> Iterator[Document]:
    yield Document(str(piece.path), decode(piece.path.read_bytes(), str(piece.path)))


def _read_jsonl(piece: TextPiece) -> Iterator[Document]:
    return _documents(read_jsonl(piece.path, piece.begin, piece.end), piece)


def _read_parquet(piece: TextPiece) -> Iterator[Document]:
    return _documents(read_parquet(piece.path), piece)


def _documents(records: Iterable[tuple[str, object]], piece: TextPiece) -> Iterator[Document]:
    for where, record in records:
        yield document_of(record, where, text_key=piece.text_key, dialogues=piece.chat is not None)


READERS: Mapping[str, Callable[[TextPiece], Iterator[Document]]] = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
"""By suffix; any other file is one text."""


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    num_chars = 0
    for document in documents:
        batch.append(document)
        num_chars += len(document.text)
        if num_chars >= _BATCH_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def fingerprint_of(files: Iterable[Path], *settings: object) -> str:
    """SHA-256 over path, size and modification time of every file, and over what shapes how it is read."""
    stats = ((path, path.stat()) for path in files)
    lines = (f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n" for path, stat in stats)
    return hashlib.sha256("".join((f"{settings}\n", *lines)).encode("utf-8", "surrogateescape")).hexdigest()


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(
            f"corpus '{path}' does not exist; give a text file, a .jsonl file, a folder of them, "
            f"a token folder, or one of {', '.join(NAMED_CORPORA)}"
        )
    return [file for file in walk(path) if file.suffix == ".parquet" or not _is_binary(file)]


def walk(folder: Path, skipped: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Files of a folder and of those in it, without hidden ones."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in skipped]
        yield from (Path(root, name) for name in names if not name.startswith("."))


def _is_binary(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"\0" in file.read(_SNIFFED_BYTES)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}; mend it or take it out of the folder") from error


def _stdlib_files(*, held_out: bool) -> list[Path]:
    """Sources of this Python's standard library, without its tests: either only the held-out packages, or the rest."""
    root = Path(sysconfig.get_path("stdlib"))
    sources = (path for path in walk(root, _STDLIB_SKIPPED) if path.suffix == ".py")
    return [path for path in sources if (path.relative_to(root).parts[0] in _STDLIB_HELD_OUT) == held_out]


NAMED_CORPORA: dict[str, Callable[[], list[Path]]] = {
    "python-stdlib": partial(_stdlib_files, held_out=False),
    "python-stdlib-heldout": partial(_stdlib_files, held_out=True),
}
"""Corpora known by name, and how their files are found."""
