"""data: from the configuration to corpora that are ready to train on. The loop calls it once, before step 1.

Text is tokenized once, and tokens of other formats are copied once, and kept in the cache folder under a name made of
everything that shapes the result, so a second call only opens files. Every entry is renamed into place when it is
whole: ranks and hosts may prepare at the same time.
"""

import gzip
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from internevo_engine.config.schema import Config
from internevo_engine.data.chat import marks_of
from internevo_engine.data.corpora import Document, TextCorpus
from internevo_engine.data.formats import FORMAT_VERSION, TokenFile, TokenWriter
from internevo_engine.data.mixing import split_weights
from internevo_engine.data.packing import Corpus, PackedCorpus, RandomCorpus
from internevo_engine.data.shards import write_source
from internevo_engine.data.sources import Source, TokenFolder, Unready, open_entry
from internevo_engine.data.tokenizers import TRAINER_SETTINGS, Tokenizer, load_tokenizer, train_tokenizer
from internevo_engine.errors import DataError
from internevo_engine.units import format_bytes, format_count, format_seconds

_PROGRESS_SECONDS = 10.0

Report = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """What the loop trains and validates on."""

    train: Corpus
    valid: Mapping[str, PackedCorpus]
    """By type; empty: no validation."""
    tokenizer: Tokenizer | None
    """None: random tokens, or token folders whose tokenizer wasn't given."""
    valid_text: tuple[TextCorpus, ...]
    """The text behind `valid`, for `gzip_bits_per_byte`; empty where a part of it is tokens or dialogues."""
    digests: Mapping[str, str]
    """SHA-256 of the tokens and document borders of each entry of data.train; empty for random tokens."""


def check_sources(config: Config) -> None:
    """What a dry run can know of the data: corpora are there, the tokenizer fits, and they go together.

    Raises:
        DataError: as `prepare`.
    """
    train, valid = _flat(_entries("data.train", config)), _flat(_entries("data.valid", config))
    _refuse_combinations(config, train, valid)
    if config.data.tokenizer not in (None, "train"):
        load_tokenizer(Path(config.data.tokenizer), config.model.vocab)
    for folder in (source.path for source in train + valid if isinstance(source, TokenFolder)):
        TokenFile.open(folder, config.model.vocab)


def prepare(config: Config, cache: Path, report: Report) -> Prepared:
    """Find the corpora, train or load the tokenizer, tokenize what isn't in `cache` yet, and open it all.

    `report` gets a line for each thing that takes time. Same configuration and same files, same result on every rank.

    Raises:
        DataError: a corpus, the tokenizer or a token folder can't be used, or they don't belong together.
        StorageError: `cache` can't be written.
    """
    entries = _entries("data.train", config)
    train, valid = _flat(entries), _flat(_entries("data.valid", config))
    _refuse_combinations(config, train, valid)
    tokenizer = _tokenizer(train, config, cache, report)
    files = {source: _token_file(source, tokenizer, config.model.vocab, cache, report) for source in train + valid}
    _refuse_mixed_tokenizers(files.values(), tokenizer)
    return Prepared(
        train=_train_corpus([[files[source] for source in entry] for entry in entries], config),
        valid=_valid_corpora(valid, files, config),
        tokenizer=tokenizer,
        valid_text=_texts(valid) if len(_texts(valid)) == len(valid) and not config.data.chat else (),
        digests={source.name: _digest(files[source]) for source in train},
    )


def _train_corpus(entries: Sequence[Sequence[TokenFile]], config: Config) -> Corpus:
    data = config.data
    shape = {"seq_len": data.seq_len, "micro_batch": data.micro_batch, "seed": config.run.seed}
    files = [file for entry in entries for file in entry]
    if not files:
        return RandomCorpus(config.model.vocab, **shape)
    weights = data.weights and split_weights(data.weights, entries)
    return PackedCorpus(files, **shape, weights=weights, pack_sample_into_one=data.pack_sample_into_one)


def _valid_corpora(
    valid: Sequence[Source], files: Mapping[Source, TokenFile], config: Config
) -> dict[str, PackedCorpus]:
    data = config.data
    shape = {"seq_len": data.seq_len, "micro_batch": data.micro_batch, "seed": config.run.seed}
    by_type: dict[str, list[TokenFile]] = {}
    for source in valid:
        by_type.setdefault(source.type, []).append(files[source])
    settings = {**shape, "pack_sample_into_one": data.pack_sample_into_one}
    return {kind: PackedCorpus(of_type, **settings) for kind, of_type in by_type.items()}


def gzip_bits_per_byte(documents: Iterable[Document]) -> float:
    """Bits per byte of UTF-8 that `gzip -9` needs, each document on its own: what a model has to beat."""
    compressed, raw = 0, 0
    for document in documents:
        text = document.text.encode()
        compressed += len(gzip.compress(text, 9, mtime=0))
        raw += len(text)
    return 8 * compressed / raw


def _entries(key: Literal["data.train", "data.valid"], config: Config) -> list[tuple[Source, ...]]:
    """The sources of each entry; empty for random tokens, and for no corpus."""
    spec = config.data.train if key == "data.train" else config.data.valid or ()
    names = (spec,) if isinstance(spec, str) else spec
    if names == ("random",):
        return []
    if "random" in names:
        raise DataError(f"{key}={list(names)} mixes random tokens with a corpus; leave out 'random' or the rest")
    return [open_entry(name, config.data.text_key, config.data.chat) for name in names]


def _flat(entries: Iterable[tuple[Source, ...]]) -> tuple[Source, ...]:
    return tuple(source for entry in entries for source in entry)


def _texts(sources: Iterable[Source]) -> tuple[TextCorpus, ...]:
    return tuple(source for source in sources if isinstance(source, TextCorpus))


def _refuse_combinations(config: Config, train: tuple[Source, ...], valid: tuple[Source, ...]) -> None:
    data = config.data
    text = next((source.name for source in _texts(train + valid)), None)
    tokens = next((source.name for source in train if not isinstance(source, TextCorpus)), None)
    refused = (
        (
            data.valid is not None and not valid,
            "data.valid=random: random tokens have nothing to learn; set data.valid to null or to text",
        ),
        (
            not train and bool(valid),
            f"data.train=random can't learn data.valid={data.valid}; set data.valid=null or train on text",
        ),
        (
            not train and data.tokenizer == "train",
            "data.tokenizer=train needs text, data.train=random has none; set data.tokenizer=null",
        ),
        (
            data.tokenizer == "train" and tokens is not None,
            f"data.tokenizer=train needs text, but data.train={tokens} is tokenized already; "
            f"set data.tokenizer to the .model file it was made with, or to null",
        ),
        (
            data.tokenizer is None and text is not None,
            f"'{text}' is text, but data.tokenizer is null; set it to 'train' or to a sentencepiece .model file",
        ),
    )
    for is_refused, message in refused:
        if is_refused:
            raise DataError(message)


def cache_of(config: Config, run: Path) -> Path:
    """Where the tokens and the trained tokenizer of a run in the folder `run` are."""
    return Path(config.data.cache) if config.data.cache else run.parent / "tokens"


def tokenizer_of(config: Config, cache: Path) -> Tokenizer | None:
    """The tokenizer of a run that has begun; None: it knows tokens only.

    Raises:
        DataError: it can't be used, or it was trained and the corpus or the cache has changed since.
    """
    train, missing = _flat(_entries("data.train", config)), f"{cache} has no tokenizer for data.train as it is now"
    if config.data.tokenizer == "train" and not _trained_path(train, config, cache).is_file():
        raise DataError(f"{missing}; go on with the run, or bring back the corpus that it was trained on")
    return _tokenizer(train, config, cache, print)


def _tokenizer(train: tuple[Source, ...], config: Config, cache: Path, report: Report) -> Tokenizer | None:
    name, vocab = config.data.tokenizer, config.model.vocab
    if name is None:
        return None
    if name != "train":
        return load_tokenizer(Path(name), vocab)
    texts, path = _texts(train), _trained_path(train, config, cache)
    if not path.exists():
        report(f"training a tokenizer of {vocab:,} pieces on {_size(texts)}")
        begin = time.perf_counter()
        documents = (document for text in texts for document in text.documents())
        train_tokenizer(documents, vocab, path, _marks(config))
        report(f"trained {path} in {format_seconds(time.perf_counter() - begin)}")
    return load_tokenizer(path, vocab)


def _trained_path(train: tuple[Source, ...], config: Config, cache: Path) -> Path:
    fingerprints = [text.fingerprint for text in _texts(train)]
    return cache / f"tokenizer-{_key(fingerprints, config.model.vocab, TRAINER_SETTINGS, *_marks(config))}.model"


def _marks(config: Config) -> list[str]:
    """Pieces that a tokenizer needs for dialogues."""
    return marks_of(config.data.chat) if config.data.chat else []


def _token_file(source: Source, tokenizer: Tokenizer | None, vocab: int, cache: Path, report: Report) -> TokenFile:
    if isinstance(source, TokenFolder):
        return TokenFile.open(source.path, vocab)
    made_with = tokenizer.sha256 if tokenizer and source.needs_tokenizer else None
    path = cache / f"tokens-{_key([source.fingerprint], made_with, FORMAT_VERSION)}"
    if not path.exists():
        _tokenize(source, tokenizer, path, report)
    return TokenFile.open(path, vocab)


def _refuse_mixed_tokenizers(files: Iterable[TokenFile], tokenizer: Tokenizer | None) -> None:
    made_with = {file.manifest.tokenizer_sha256: file.path for file in files if file.manifest.tokenizer_sha256}
    if tokenizer:
        made_with.setdefault(tokenizer.sha256, tokenizer.path)
    if len(made_with) > 1:
        found = ", ".join(f"{path} ({sha256[:16]})" for sha256, path in made_with.items())
        raise DataError(
            f"data.train, data.valid and data.tokenizer must share one tokenizer, found {len(made_with)} by SHA-256: "
            f"{found}; give the .model file the token folder was made with, or tokenize its text again"
        )


def _tokenize(source: Unready, tokenizer: Tokenizer | None, path: Path, report: Report) -> None:
    doing, done = ("tokenizing", "tokenized") if source.needs_tokenizer else ("copying", "copied")
    report(f"{doing} {source.name}: {format_bytes(source.num_bytes)}")
    begin = last = time.perf_counter()

    def told(writer: TokenWriter) -> None:
        nonlocal last
        now, num_tokens = time.perf_counter(), writer.starts[-1]
        if now - last > _PROGRESS_SECONDS:
            last = now
            report(f"{done} {format_count(num_tokens)} tokens, {format_count(num_tokens / (now - begin))} tokens/s")

    writer = write_source(source, tokenizer, path, told)
    seconds, num_tokens = time.perf_counter() - begin, writer.starts[-1]
    size = f", {writer.num_bytes / num_tokens:.2f} bytes each" if writer.num_bytes else ""
    report(
        f"{done} {source.name} in {format_seconds(seconds)} ({format_count(num_tokens / seconds)} tokens/s): "
        f"{format_count(num_tokens)} tokens{size}, kept in {path}"
    )


def _digest(file: TokenFile) -> str:
    return hashlib.sha256(f"{file.manifest.tokens_sha256} {file.manifest.index_sha256}".encode()).hexdigest()


def _size(corpora: Iterable[TextCorpus]) -> str:
    """'912 files, 8.9 MB'"""
    num_files, num_bytes = 0, 0
    for corpus in corpora:
        num_files += len(corpus.files)
        num_bytes += corpus.num_bytes
    return f"{num_files} file{'s' * (num_files != 1)}, {format_bytes(num_bytes)}"


def _key(*shapers: object) -> str:
    """16 hex digits from everything that shapes a cached file."""
    return hashlib.sha256(json.dumps(shapers, sort_keys=True).encode()).hexdigest()[:16]
