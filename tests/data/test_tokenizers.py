"""The tokenizer loses nothing, is the same every time, and says what it can't do."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from internevo_engine.data import tokenizers
from internevo_engine.data.corpora import Document, TextCorpus
from internevo_engine.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from internevo_engine.errors import DataError, StorageError

TEXTS = [f"def function_{i}(self, argument):\n    return self.values[{i * i}]\n\n\n" for i in range(200)]


def documents(texts: list[str] = TEXTS) -> Iterator[Document]:
    return (Document(f"{number}", text) for number, text in enumerate(texts))


@pytest.fixture(scope="module")
def stdlib_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "stdlib.model"
    train_tokenizer(TextCorpus.open("python-stdlib").documents(), 4096, path)
    return load_tokenizer(path, 4096)


def test_held_out_standard_library_comes_back_byte_for_byte(stdlib_tokenizer: Tokenizer) -> None:
    num_bytes, num_tokens = 0, 0
    for document in TextCorpus.open("python-stdlib-heldout").documents():
        tokens = stdlib_tokenizer.encode(document.text)
        assert stdlib_tokenizer.decode(tokens).encode() == document.text.encode(), document.name
        num_bytes += len(document.text.encode())
        num_tokens += len(tokens)
    # 3.62 with Python 3.11's sources; without pieces for runs of spaces it is 2.23.
    assert num_bytes / num_tokens > 3.4


@pytest.mark.parametrize(
    "text",
    ["", " lead", "\n\n \t\r\n", "a\0b", "<s></s><unk><0x41>", "é e\u0301 \ufeff 中文 😀 \U0010ffff", "\x85\u2028"],
)
def test_odd_text_comes_back(stdlib_tokenizer: Tokenizer, text: str) -> None:
    assert stdlib_tokenizer.decode(stdlib_tokenizer.encode(text)) == text


def test_control_pieces_in_text_are_only_text(stdlib_tokenizer: Tokenizer) -> None:
    assert not {stdlib_tokenizer.bos_id, stdlib_tokenizer.eos_id, 0} & set(stdlib_tokenizer.encode("<s> </s> <unk>"))


def test_documents_are_the_encoded_texts_between_bos_and_eos(
    stdlib_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["import os\n", "", "x = 1\ny = 2\n" * 20]
    for size in (tokenizers._ENCODE_CHARS, 50):
        monkeypatch.setattr(tokenizers, "_ENCODE_CHARS", size)
        encoded = stdlib_tokenizer.encode_documents(texts)
        assert [document.tolist() for document in encoded] == [[1, *stdlib_tokenizer.encode(text), 2] for text in texts]
        assert {document.dtype for document in encoded} == {np.dtype(np.int64)}
        assert [stdlib_tokenizer.decode(document.tolist()) for document in encoded] == texts


def test_training_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_tokenizer(documents(), 400, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    tokenizer = load_tokenizer(tmp_path / "a", 400)
    assert (tokenizer.num_pieces, tokenizer.bos_id, tokenizer.eos_id) == (400, 1, 2)


def test_large_corpus_is_sampled_evenly_and_always_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "_NUM_SAMPLES", 50)
    sample = tokenizers._sample(documents())
    assert sample == tokenizers._sample(documents())
    assert len(set(sample)) == 50
    assert 60 < np.mean([TEXTS.index(text) for text in sample]) < 140


def test_stretches_cut_after_newlines_and_lose_nothing() -> None:
    text = "a\n" * 10 + "b" * 25 + "\n" + "c"
    stretches = list(tokenizers._stretches(text, 7))
    assert "".join(stretches) == text
    assert max(map(len, stretches)) <= 7
    assert stretches[:3] == ["a\na\na\n"] * 3


@pytest.mark.parametrize("vocab", [100, 60_000])
def test_impossible_vocab_names_one_that_works(tmp_path: Path, vocab: int) -> None:
    with pytest.raises(DataError, match=f"model.vocab={vocab} .*set model.vocab=") as caught:
        train_tokenizer(documents(), vocab, tmp_path / "a.model")
    assert not list(tmp_path.iterdir())
    allowed = int(str(caught.value).split("set model.vocab=")[1].split()[0])
    train_tokenizer(documents(), allowed, tmp_path / "a.model")
    assert load_tokenizer(tmp_path / "a.model", allowed).num_pieces == allowed


def test_unusable_model_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.model").write_text("hello")
    train_tokenizer(documents(), 400, tmp_path / "good.model")
    refused = (
        ("missing.model", 400, "No such file"),
        ("text.model", 400, "not a sentencepiece model"),
        ("good.model", 399, "has 400 pieces, model.vocab=399 .* set model.vocab=400"),
    )
    for name, vocab, message in refused:
        with pytest.raises(DataError, match=message):
            load_tokenizer(tmp_path / name, vocab)


def test_unwritable_folder_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="can't be written"):
        train_tokenizer(documents(), 400, tmp_path / "file" / "a.model")
