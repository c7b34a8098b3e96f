"""Preparing is done once, is safe to do at the same time, and refuses what doesn't belong together."""

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from pydantic import ValidationError

from internevo_engine.config.schema import Config
from internevo_engine.data.corpora import Document
from internevo_engine.data.formats import TokenFile, write_tokens
from internevo_engine.data.internevo import write_internevo
from internevo_engine.data.mixing import split_weights
from internevo_engine.data.packing import RandomCorpus
from internevo_engine.data.prepare import Prepared, gzip_bits_per_byte, prepare
from internevo_engine.data.tokenizers import TRAINER_SETTINGS
from internevo_engine.errors import DataError

VOCAB = 400


def make_config(*, vocab: int = VOCAB, **data: object) -> Config:
    model = {"family": "internlm", "vocab": vocab, "layers": 1, "hidden": 8, "heads": 2, "ffn": 16}
    return Config.model_validate({"model": model, "data": {"seq_len": 16, "micro_batch": 2, **data}})


@pytest.fixture
def text(tmp_path: Path) -> str:
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(100):
        (folder / f"{i}.py").write_text(f"def function_{i}(self, argument):\n    return self.values[{i * i}]\n")
    return str(folder)


@pytest.fixture
def valid(tmp_path: Path) -> str:
    path = tmp_path / "valid.txt"
    path.write_text("def unseen(argument):\n\treturn 'é'\n")
    return str(path)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "cache"
    assert not list(tmp_path.rglob("*.tmp-*"))


def ignore(line: str) -> None:
    """A report that nobody reads."""


def run(config: Config, cache: Path) -> tuple[Prepared, list[str]]:
    lines: list[str] = []
    return prepare(config, cache, lines.append), lines


def test_text_becomes_corpora_and_the_second_call_only_opens(text: str, valid: str, cache: Path) -> None:
    config = make_config(train=text, valid=valid, tokenizer="train")
    first, said = run(config, cache)
    assert said[0] == "training a tokenizer of 400 pieces on 100 files, 6.14 kB"
    assert [line.split()[0] for line in said] == [
        "training",
        "trained",
        "tokenizing",
        "tokenized",
        "tokenizing",
        "tokenized",
    ]
    second, said_again = run(config, cache)
    assert said_again == []
    for step in (0, 5):
        assert torch.equal(first.train.micro_batch(step, 0, 1).tokens, second.train.micro_batch(step, 0, 1).tokens)
    assert first.tokenizer is not None
    assert list(first.valid) == ["valid"]
    labels = torch.cat([pack.labels for pack in first.valid["valid"].evaluation_packs()])
    assert first.tokenizer.decode(labels[labels >= 0].tolist()) == Path(valid).read_text()
    assert first.valid["valid"].num_bytes == len(Path(valid).read_bytes())
    assert [document.text for corpus in first.valid_text for document in corpus.documents()] == [
        Path(valid).read_text()
    ]


def test_edited_text_is_prepared_anew(text: str, cache: Path) -> None:
    config = make_config(train=text, tokenizer="train")
    before, _ = run(config, cache)
    (Path(text) / "new.py").write_text("import something_else\n" * 20)
    after, said = run(config, cache)
    assert said[0].startswith("training a tokenizer")
    assert before.tokenizer is not None
    assert after.tokenizer is not None
    assert before.tokenizer.sha256 != after.tokenizer.sha256


def test_hosts_that_prepare_at_the_same_time_get_the_same(text: str, cache: Path) -> None:
    config = make_config(train=text, tokenizer="train")
    with ThreadPoolExecutor(4) as hosts:
        prepared = list(hosts.map(lambda _: prepare(config, cache, ignore), range(4)))
    assert len({host.tokenizer.sha256 for host in prepared if host.tokenizer}) == 1
    assert len(list(cache.iterdir())) == 2
    tokens = [host.train.micro_batch(0, 0, 1).tokens for host in prepared]
    assert all(torch.equal(tokens[0], other) for other in tokens)


def test_random_needs_nothing(cache: Path) -> None:
    prepared, said = run(make_config(train="random"), cache)
    assert isinstance(prepared.train, RandomCorpus)
    assert (prepared.valid, prepared.tokenizer, prepared.valid_text, said) == ({}, None, (), [])
    assert not cache.exists()


def test_token_folders_are_used_as_they_are(text: str, valid: str, tmp_path: Path, cache: Path) -> None:
    made, _ = run(make_config(train=text, valid=valid, tokenizer="train"), cache)
    assert made.tokenizer is not None
    folder = str(next(cache.glob("tokens-*")))
    ready, said = run(make_config(train=(folder,), valid=folder), cache)
    assert said == []
    assert ready.tokenizer is None
    assert list(ready.valid) == [Path(folder).name]
    mixed, _ = run(make_config(train=(folder, text), tokenizer=str(made.tokenizer.path)), cache)
    assert mixed.tokenizer is not None
    assert mixed.tokenizer.sha256 == made.tokenizer.sha256


def error_of(config: Config, cache: Path) -> str:
    with pytest.raises(DataError) as caught:
        prepare(config, cache, ignore)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_combinations_that_make_no_sense_are_refused(text: str, valid: str, tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "tokens"
    with write_tokens(folder, 300, source="test", tokenizer_sha256="f00") as writer:
        writer.add(np.array([1, 250, 2]), num_bytes=3)
    tokens = str(folder)
    assert "data.tokenizer is null; set it to 'train'" in error_of(make_config(train=text), cache)
    assert f"'{valid}' is text" in error_of(make_config(train=tokens, valid=valid), cache)
    assert "random has none; set data.tokenizer=null" in error_of(make_config(train="random", tokenizer="train"), cache)
    assert "is tokenized already" in error_of(make_config(train=tokens, tokenizer="train"), cache)
    assert "is tokenized already" in error_of(make_config(train=(text, tokens), tokenizer="train"), cache)
    assert "random can't learn" in error_of(make_config(train="random", valid=valid), cache)
    assert "data.valid=random" in error_of(make_config(train=text, valid="random", tokenizer="train"), cache)
    assert "mixes random tokens" in error_of(make_config(train=("random", text), tokenizer="train"), cache)
    assert "token 250, model.vocab=200; set model.vocab=300" in error_of(make_config(train=tokens, vocab=200), cache)
    assert not cache.exists()
    mixed = error_of(make_config(train=text, valid=tokens, tokenizer="train"), cache)
    assert "must share one tokenizer, found 2" in mixed
    assert tokens in mixed


@pytest.mark.parametrize(("vocab", "expected"), [(100, "too small"), (50_000, "more than this corpus can fill")])
def test_vocab_that_does_not_fit_the_corpus_is_refused(text: str, cache: Path, vocab: int, expected: str) -> None:
    assert expected in error_of(make_config(train=text, tokenizer="train", vocab=vocab), cache)


def test_gzip_counts_each_document_on_its_own() -> None:
    document = Document("a", "the same text again and again, é " * 10)
    alone = gzip_bits_per_byte([document])
    assert gzip_bits_per_byte([document, document]) == pytest.approx(alone)
    assert alone < 8


def test_tokens_of_other_formats_are_copied_once_and_keep_their_types(tmp_path: Path, cache: Path) -> None:
    for kind, ids in (("en", [1, ~5, 6, 2]), ("cn", [1, 7, 2])):
        (tmp_path / "evo" / kind).mkdir(parents=True)
        write_internevo(tmp_path / "evo" / kind / "x.bin", [np.array(ids)] * 5)
    config = make_config(train=str(tmp_path / "evo"), valid=str(tmp_path / "evo"))
    prepared, said = run(config, cache)
    assert [line.split()[0] for line in said] == ["copying", "copied"] * 2
    assert list(prepared.valid) == ["cn", "en"]
    assert [corpus.num_positions for corpus in prepared.valid.values()] == [10, 15]
    assert run(config, cache)[1] == []
    assert "token 7, model.vocab=7; set model.vocab=8" in error_of(make_config(train=config.data.train, vocab=7), cache)


def test_dialogues_train_with_a_template_only(text: str, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "chat.jsonl").write_text('{"instruction": "Say a.", "output": "aaaa"}\n')
    marked = {**TRAINER_SETTINGS, "control_symbols": ["<|im_start|>", "<|im_end|>"]}
    model = io.BytesIO()
    sentences = iter([path.read_text() for path in Path(text).iterdir()])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_writer=model, vocab_size=VOCAB, **marked
    )
    (tmp_path / "chat.model").write_bytes(model.getvalue())
    shape = {"train": str(tmp_path / "chat.jsonl"), "tokenizer": str(tmp_path / "chat.model")}
    assert "no key 'text' among" in error_of(make_config(**shape), cache)
    prepared, _ = run(make_config(**shape, chat="internlm2", seq_len=64), cache)
    assert prepared.tokenizer is not None
    batch = prepared.train.micro_batch(0, 0, 1)
    answer = set(prepared.tokenizer.encode("aaaa")) | {prepared.tokenizer.piece_id("<|im_end|>")}
    assert set(batch.labels[batch.labels >= 0].tolist()) == answer


@pytest.mark.parametrize(
    ("train", "weights", "message"),
    [
        (("a", "b"), [1.0], r"weights has 1 numbers, train=.* has 2 corpora"),
        ("random", [1.0], "weights has 1 numbers, train=random"),
        (("a", "b"), [1.0, 0.0], "greater than 0"),
        (("a", "b"), [1.0, float("inf")], "finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(train: object, weights: list[float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_config(train=train, weights=weights)


def test_types_of_an_entry_share_its_weight_by_their_tokens(tmp_path: Path) -> None:
    files = []
    for name, count in (("a", 30), ("b", 10), ("c", 7)):
        with write_tokens(tmp_path / name, 300, source="test") as writer:
            writer.add(np.full(count, 5), num_bytes=1)
        files.append(TokenFile.open(tmp_path / name, 300))
    assert split_weights([4.0, 1.0], [files[:2], files[2:]]) == [3.0, 1.0, 1.0]


def test_a_tokenizer_that_is_trained_for_dialogues_has_their_marks(text: str, tmp_path: Path, cache: Path) -> None:
    turns = [{"role": "user", "content": "a <|im_end|>?"}, {"role": "assistant", "content": "yes"}]
    dialogues = tmp_path / "dialogues.jsonl"
    dialogues.write_text(json.dumps({"messages": turns}) + "\n")
    plain, _ = run(make_config(train=text, tokenizer="train"), cache)
    made, said = run(make_config(train=(text, str(dialogues)), tokenizer="train", chat="internlm2"), cache)
    assert said[0].startswith("training a tokenizer")
    assert plain.tokenizer is not None
    assert made.tokenizer is not None
    assert plain.tokenizer.piece_id("<|im_end|>") is None
    end = made.tokenizer.piece_id("<|im_end|>")
    assert end is not None
    assert made.tokenizer.num_pieces == VOCAB
    assert end not in made.tokenizer.encode("<|im_end|>")
