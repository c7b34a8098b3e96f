"""data: the token folder, what text becomes and what training reads. Filled from tokenizers, read by packing.

    NAME/tokens.bin     every document one after the other, as bos, tokens..., eos; raw little-endian. In a signed dtype
                        a negative value t is token ~t, which the model reads but is not asked to predict
    NAME/index.npy      int64 [D+1], where each of the D documents starts in tokens.bin, and the end of the last
    NAME/manifest.json  sizes, vocabulary, origin and checksums; a Manifest

A folder exists whole or not at all: it is written under another name beside it, synced, and renamed.
"""

import hashlib
import os
import shutil
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal
from uuid import uuid4

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from internevo_engine.data.arrays import Tokens, map_array, map_raw, token_ids
from internevo_engine.errors import DataError, StorageError

FORMAT_VERSION = 1
TOKENS, INDEX, MANIFEST = "tokens.bin", "index.npy", "manifest.json"

_NPY_HEADER_BYTES = 128
"""NumPy pads the header of a one-dimensional array to this, whatever its length."""


class Manifest(BaseModel):
    """What manifest.json holds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    version: Literal[1]
    """FORMAT_VERSION of the writer."""
    dtype: Literal["<u2", "<u4", "<i2", "<i4"]
    """Of tokens.bin, as numpy names it; signed where some tokens are not counted in the loss."""
    vocab: int
    """Token ids are below it."""
    max_token: int
    """Largest token id that occurs."""
    num_tokens: int
    """With bos and eos."""
    num_documents: int
    num_bytes: int
    """UTF-8 size of the text the tokens were made from."""
    tokenizer_sha256: str | None
    """SHA-256 of the tokenizer's .model file; null where it isn't known."""
    source: str
    """The corpus, for people."""
    tokens_sha256: str
    index_sha256: str


@dataclass(frozen=True)
class TokenFile:
    """An open token folder; tokens and index are memory-mapped and read-only."""

    path: Path
    manifest: Manifest
    tokens: Tokens
    """[num_tokens] of manifest.dtype."""
    index: npt.NDArray[np.int64]
    """[num_documents + 1]"""

    @classmethod
    def open(cls, path: Path, vocab: int) -> "TokenFile":
        """Map the folder at `path` for a model of `vocab` embedding rows; reads the index, not the tokens.

        Raises:
            DataError: a file is missing or of another size than the manifest says, the index leads out of the tokens,
                or a token id is not below `vocab`.
        """
        manifest = _read_manifest(path)
        dtype = np.dtype(manifest.dtype)
        _check_size(path / TOKENS, manifest.num_tokens * dtype.itemsize)
        _check_size(path / INDEX, _NPY_HEADER_BYTES + 8 * (manifest.num_documents + 1))
        tokens = map_raw(path / TOKENS, dtype, manifest.num_tokens)
        index = map_array(path / INDEX)
        _check_index(path / INDEX, index, manifest)
        token_file = cls(path, manifest, tokens, index)
        token_file._check_vocab(vocab)
        return token_file

    def document(self, number: int) -> Tokens:
        """bos, tokens..., eos of one document; a view."""
        return self.tokens[self.index[number] : self.index[number + 1]]

    def documents(self) -> Iterator[Tokens]:
        """All of them, in order."""
        return map(self.document, range(len(self.index) - 1))

    def verify(self) -> None:
        """Read everything and compare checksums.

        Raises:
            DataError: a file isn't what was written.
        """
        for name, expected in ((TOKENS, self.manifest.tokens_sha256), (INDEX, self.manifest.index_sha256)):
            found = _sha256(self.path / name)
            if found != expected:
                raise DataError(
                    f"{self.path / name} has SHA-256 {found}, the manifest says {expected}; make the folder anew"
                )

    def _check_vocab(self, vocab: int) -> None:
        if self.manifest.max_token >= vocab:
            position = int(np.argmax(token_ids(self.tokens) >= vocab))
            document = int(np.searchsorted(self.index, position, side="right")) - 1
            raise DataError(
                f"{self.path}: document {document}, position {position - int(self.index[document])} is token "
                f"{token_ids(self.tokens[position])}, model.vocab={vocab}; set model.vocab={self.manifest.vocab} "
                f"or use other data"
            )
        if self.manifest.vocab > vocab:
            raise DataError(
                f"{self.path} was made for a vocabulary of {self.manifest.vocab}, model.vocab={vocab}; "
                f"set model.vocab={self.manifest.vocab} or use other data"
            )


class TokenWriter:
    """Appends documents to a token folder that isn't there yet; made by `write_tokens`."""

    def __init__(self, tokens: BinaryIO, vocab: int | None, *, masked: bool) -> None:
        is_small = vocab is not None and vocab <= 1 << (15 if masked else 16)
        self.dtype = np.dtype(f"<{'i' if masked else 'u'}{2 if is_small else 4}")
        self.starts = array("q", [0])
        self.num_bytes = 0
        self.max_token = 0
        self._tokens = tokens
        self._vocab = vocab

    @property
    def vocab(self) -> int:
        """As it was said, else the smallest that holds all tokens."""
        return self.max_token + 1 if self._vocab is None else self._vocab

    def add(self, document: Tokens, num_bytes: int) -> None:
        """Append one document (bos, tokens..., eos) that was `num_bytes` bytes of text; ~id for a token not counted."""
        largest, smallest = int(document.max()), int(document.min())
        assert smallest >= 0 or self.dtype.kind == "i", "a token is masked, but the writer was not told"
        self.max_token = max(self.max_token, largest, ~smallest)
        assert self.max_token < self.vocab, f"token {self.max_token} is outside the vocabulary of {self.vocab}"
        self._tokens.write(document.astype(self.dtype).tobytes())
        self.starts.append(self.starts[-1] + len(document))
        self.num_bytes += num_bytes

    def append(self, file: TokenFile) -> None:
        """Append all documents of another folder of the same kind."""
        assert file.tokens.dtype == self.dtype, f"{file.path} holds {file.tokens.dtype}, not {self.dtype}"
        self._tokens.write(file.tokens.data)
        self.starts.extend((file.index[1:] + self.starts[-1]).tolist())
        self.max_token = max(self.max_token, file.manifest.max_token)
        self.num_bytes += file.manifest.num_bytes


@contextmanager
def write_tokens(
    path: Path, vocab: int | None, *, source: str, tokenizer_sha256: str | None = None, masked: bool = False
) -> Iterator[TokenWriter]:
    """Write the token folder `path`: the block adds documents, its end makes the folder exist; an error leaves nothing.

    Of two writers of one path the first to finish stays, and the other's work is dropped without an error. `vocab` is
    None where the tokenizer isn't known; `masked` lets documents hold tokens that are not counted.

    Raises:
        StorageError: the folder can't be written.
    """
    unfinished = path.with_name(f"{path.name}.tmp-{uuid4().hex}")
    try:
        unfinished.mkdir(parents=True)
        with (unfinished / TOKENS).open("wb") as file:
            writer = TokenWriter(file, vocab, masked=masked)
            yield writer
            _sync(file)
        _write_index(unfinished, writer)
        _write_manifest(unfinished, writer, source, tokenizer_sha256)
        _sync_folder(unfinished)
        _publish(unfinished, path)
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error.strerror}; free space or change the folder") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def is_token_folder(path: Path) -> bool:
    """Whether `path` is a token folder, whole or damaged, rather than a folder of text."""
    return (path / TOKENS).is_file()


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; a token folder holds {TOKENS}, {INDEX} and {MANIFEST}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(key) for key in first["loc"]) or "the file"
        raise DataError(
            f"{path}: {where}: {first['msg']}; this version reads format {FORMAT_VERSION}, make the folder anew"
        ) from error


def _check_size(path: Path, expected_bytes: int) -> None:
    try:
        found_bytes = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; a token folder holds {TOKENS}, {INDEX} and {MANIFEST}") from error
    if found_bytes != expected_bytes:
        raise DataError(
            f"{path} has {found_bytes} bytes, the manifest says {expected_bytes}: the copy was cut short or changed; "
            f"copy the folder again, or delete it and make it anew"
        )


def _check_index(path: Path, index: npt.NDArray[Any], manifest: Manifest) -> None:
    expected = (np.dtype("<i8"), (manifest.num_documents + 1,))
    if (index.dtype, index.shape) != expected:
        raise DataError(f"{path} holds {index.dtype}{index.shape}, the manifest says int64{expected[1]}; make it anew")
    if index[0] != 0 or index[-1] != manifest.num_tokens or (np.diff(index) < 0).any():
        raise DataError(
            f"{path} does not rise from 0 to the {manifest.num_tokens} tokens of {TOKENS}; make the folder anew"
        )


def _write_index(folder: Path, writer: TokenWriter) -> None:
    with (folder / INDEX).open("wb") as file:
        np.save(file, np.frombuffer(writer.starts, np.int64).astype("<i8", copy=False))
        _sync(file)


def _write_manifest(folder: Path, writer: TokenWriter, source: str, tokenizer_sha256: str | None) -> None:
    manifest = Manifest(
        version=FORMAT_VERSION,
        dtype=writer.dtype.str,  # pyright: ignore[reportArgumentType]
        vocab=writer.vocab,
        max_token=writer.max_token,
        num_tokens=writer.starts[-1],
        num_documents=len(writer.starts) - 1,
        num_bytes=writer.num_bytes,
        tokenizer_sha256=tokenizer_sha256,
        source=source,
        tokens_sha256=_sha256(folder / TOKENS),
        index_sha256=_sha256(folder / INDEX),
    )
    with (folder / MANIFEST).open("wb") as file:
        file.write(manifest.model_dump_json(indent=2).encode() + b"\n")
        _sync(file)


def _publish(unfinished: Path, path: Path) -> None:
    try:
        unfinished.rename(path)
    except OSError:  # another writer was first, or the rename itself failed
        if not path.is_dir():
            raise
    _sync_folder(path.parent)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
