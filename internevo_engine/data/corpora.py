"""data: from the name of a corpus to its documents. The first step of data; tokenizers and formats take over the text.

A corpus is a named one (a row of NAMED_CORPORA), a UTF-8 text file (one document), a JSONL file (one document a
line) or a folder of such files. Text is taken as it is: no newline, space or byte order mark is changed.
"""

import hashlib
import json
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from internevo_engine.errors import DataError

_STDLIB_HELD_OUT = frozenset({"json", "email", "http"})
_STDLIB_SKIPPED = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages"})
_SNIFFED_BYTES = 8000
"""Git's rule: a file with a NUL among its first 8,000 bytes is binary."""


@dataclass(frozen=True)
class Document:
    """One text. `name` is its file, or file:line in JSONL."""

    name: str
    text: str


@dataclass(frozen=True)
class TextCorpus:
    """The files of one corpus, found but not yet read."""

    name: str
    """As the user wrote it."""
    files: tuple[Path, ...]
    """Sorted."""
    text_key: str
    """Key of the text in each line of a JSONL file."""
    num_bytes: int
    """Size of the files on disk."""
    fingerprint: str
    """SHA-256 over path, size and modification time of every file: cheap for any size, changed by any edit."""

    @classmethod
    def open(cls, name: str, text_key: str = "text") -> "TextCorpus":
        """Find the files of `name`: a row of NAMED_CORPORA, a file or a folder.

        A folder gives all its files, recursively, but for hidden and binary ones.

        Raises:
            DataError: nothing is there, or no text file is in the folder.
        """
        files = tuple(sorted(NAMED_CORPORA[name]() if name in NAMED_CORPORA else _files_of(Path(name))))
        stats = [path.stat() for path in files]
        num_bytes = sum(stat.st_size for stat in stats)
        if not num_bytes:
            raise DataError(
                f"corpus '{name}' is empty: {len(files)} text files, 0 bytes; add text or name another corpus"
            )
        lines = (f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n" for path, stat in zip(files, stats, strict=True))
        fingerprint = hashlib.sha256("".join((text_key, "\n", *lines)).encode("utf-8", "surrogateescape")).hexdigest()
        return cls(name, files, text_key, num_bytes, fingerprint)

    def documents(self) -> Iterator[Document]:
        """Yield every text that isn't empty, file by file.

        Raises:
            DataError: a file can't be read or isn't UTF-8, a JSONL line has no text, or all texts are empty.
        """
        found = False
        for path in self.files:
            for document in _read(path, self.text_key):
                found = found or bool(document.text)
                if document.text:
                    yield document
        if not found:
            raise DataError(
                f"corpus '{self.name}' is empty: {len(self.files)} files without text; add text or name another corpus"
            )


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(
            f"corpus '{path}' does not exist; give a text file, a .jsonl file, a folder of them, "
            f"a token folder, or one of {', '.join(NAMED_CORPORA)}"
        )
    return [file for file in _walk(path) if not _is_binary(file)]


def _walk(folder: Path, skipped: frozenset[str] = frozenset()) -> Iterator[Path]:
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
    sources = (path for path in _walk(root, _STDLIB_SKIPPED) if path.suffix == ".py")
    return [path for path in sources if (path.relative_to(root).parts[0] in _STDLIB_HELD_OUT) == held_out]


NAMED_CORPORA: dict[str, Callable[[], list[Path]]] = {
    "python-stdlib": partial(_stdlib_files, held_out=False),
    "python-stdlib-heldout": partial(_stdlib_files, held_out=True),
}
"""Corpora known by name, and how their files are found."""


def _read(path: Path, text_key: str) -> Iterator[Document]:
    try:
        if path.suffix == ".jsonl":
            yield from _read_jsonl(path, text_key)
        else:
            yield Document(str(path), _decode(path.read_bytes(), str(path)))
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}; mend it or take it out of the corpus") from error


def _read_jsonl(path: Path, text_key: str) -> Iterator[Document]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}:{number}"
                yield Document(where, _text_of(_decode(line, where), text_key, where))


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: byte {error.start} (0x{raw[error.start]:02x}) is not UTF-8; convert the file to UTF-8 "
            f"or take it out of the corpus"
        ) from error


def _text_of(line: str, text_key: str, where: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}; each line of a .jsonl file is one JSON object") from error
    if not isinstance(record, dict):
        raise DataError(f'{where}: {type(record).__name__} instead of an object; write {{"{text_key}": ...}}')
    if text_key not in record:
        raise DataError(
            f"{where}: no key '{text_key}' among {sorted(record)}; set data.text_key to the key of the text"
        )
    text = record[text_key]
    if not isinstance(text, str):
        raise DataError(
            f"{where}: '{text_key}' is {type(text).__name__}, not text; set data.text_key to the key of the text"
        )
    if not _is_unicode(text):
        raise DataError(f"{where}: '{text_key}' holds half of a surrogate pair, which no UTF-8 text can; mend the line")
    return text


def _is_unicode(text: str) -> bool:
    """JSON can spell lone surrogates, as "\\ud800"."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
