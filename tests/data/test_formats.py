"""A token folder is whole or absent, and damage is found before it is read."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from internevo_engine.data.formats import INDEX, MANIFEST, TOKENS, TokenFile, is_token_folder, write_tokens
from internevo_engine.errors import DataError, StorageError

DOCUMENTS = [[1, 7, 8, 2], [1, 2], [1, 99, 5, 6, 2]]


def write(path: Path, documents: Iterable[list[int]] = DOCUMENTS, vocab: int = 100) -> Path:
    with write_tokens(path, vocab, source="test", tokenizer_sha256="f00") as writer:
        for document in documents:
            writer.add(np.array(document), num_bytes=10)
    return path


@pytest.mark.parametrize(("vocab", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_documents_come_back(tmp_path: Path, vocab: int, dtype: type) -> None:
    documents = [*DOCUMENTS, [1, vocab - 1, 2]]
    token_file = TokenFile.open(write(tmp_path / "new" / "t", documents, vocab), vocab)
    assert [token_file.document(i).tolist() for i in range(4)] == documents
    assert token_file.tokens.dtype == dtype
    assert (token_file.manifest.num_documents, token_file.manifest.num_tokens, token_file.manifest.num_bytes) == (
        4,
        14,
        40,
    )
    token_file.verify()


def test_files_are_what_the_format_says(tmp_path: Path) -> None:
    path = write(tmp_path / "t")
    assert np.fromfile(path / TOKENS, "<u2").tolist() == [1, 7, 8, 2, 1, 2, 1, 99, 5, 6, 2]
    assert np.load(path / INDEX).tolist() == [0, 4, 6, 11]
    manifest = json.loads((path / MANIFEST).read_text())
    assert (manifest["version"], manifest["max_token"], manifest["tokenizer_sha256"]) == (1, 99, "f00")


def test_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> Iterator[list[int]]:
        yield [1, 2]
        assert len(list(tmp_path.iterdir())) == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "t", interrupted())
    assert not list(tmp_path.iterdir())


def test_first_of_two_racing_writers_stays(tmp_path: Path) -> None:
    path = tmp_path / "t"
    with write_tokens(path, 100, source="late") as late:
        late.add(np.array([1, 50, 2]), num_bytes=1)
        write(path)
        assert len(list(tmp_path.iterdir())) == 2
    assert TokenFile.open(path, 100).manifest.source == "test"
    TokenFile.open(path, 100).verify()
    assert [entry.name for entry in tmp_path.iterdir()] == ["t"]


def test_unwritable_folder_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="can't be written"):
        write(tmp_path / "file" / "t")


@pytest.mark.parametrize(("name", "size"), [(TOKENS, 22), (INDEX, 160)])
def test_truncation_names_both_sizes(tmp_path: Path, name: str, size: int) -> None:
    path = write(tmp_path / "t")
    (path / name).write_bytes((path / name).read_bytes()[:-3])
    with pytest.raises(
        DataError, match=f"{name} has {size - 3} bytes, the manifest says {size}: .* copy the folder again"
    ):
        TokenFile.open(path, 100)


def test_missing_or_foreign_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t")
    assert is_token_folder(path)
    assert not is_token_folder(tmp_path)
    (path / INDEX).unlink()
    with pytest.raises(DataError, match=r"index\.npy: No such file"):
        TokenFile.open(path, 100)
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(manifest | {"version": 2}))
    with pytest.raises(DataError, match=r"manifest\.json: version: .* this version reads format 1"):
        TokenFile.open(path, 100)
    (path / MANIFEST).unlink()
    with pytest.raises(DataError, match=r"manifest\.json: No such file"):
        TokenFile.open(path, 100)


def test_token_outside_the_vocabulary_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "t")
    with pytest.raises(DataError, match=r"document 2, position 1 is token 99, model.vocab=99; set model.vocab=100"):
        TokenFile.open(path, 99)


def test_folder_of_a_larger_vocabulary_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t", [[1, 7, 2]])
    with pytest.raises(DataError, match=r"made for a vocabulary of 100, model\.vocab=50"):
        TokenFile.open(path, 50)


def test_verify_finds_a_changed_bit(tmp_path: Path) -> None:
    path = write(tmp_path / "t")
    raw = bytearray((path / TOKENS).read_bytes())
    raw[2] ^= 1
    (path / TOKENS).write_bytes(raw)
    with pytest.raises(DataError, match=r"tokens\.bin has SHA-256"):
        TokenFile.open(path, 100).verify()
