"""data: from the configuration to corpora that are ready to train on. The loop calls it once, before step 1.

Text is tokenized once and kept in the cache folder under a name made of everything that shapes the result, so a second
call only opens files. Every entry is renamed into place when it is whole: ranks and hosts may prepare at the same time.
"""

import gzip
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from internevo_engine.config.schema import Config
from internevo_engine.data.corpora import Document, TextCorpus
from internevo_engine.data.formats import FORMAT_VERSION, TokenFile, is_token_folder, write_tokens
from internevo_engine.data.packing import Corpus, PackedCorpus, RandomCorpus
from internevo_engine.data.tokenizers import TRAINER_SETTINGS, Tokenizer, load_tokenizer, train_tokenizer
from internevo_engine.errors import DataError
from internevo_engine.units import format_bytes, format_count, format_seconds

_BATCH_CHARS = 4_000_000
"""Text handed to the tokenizer at once; its threads share it."""
_PROGRESS_SECONDS = 10.0

Report = Callable[[str], None]
Part = TextCorpus | Path
"""One entry of data.train or data.valid: text to be tokenized, or a ready token folder."""


@dataclass(frozen=True)
class Prepared:
    """What the loop trains and validates on."""

    train: Corpus
    valid: PackedCorpus | None
    """None: no validation."""
    tokenizer: Tokenizer | None
    """None: random tokens, or token folders whose tokenizer wasn't given."""
    valid_text: tuple[TextCorpus, ...]
    """The text behind `valid`, for `gzip_bits_per_byte`; empty where a part of it is a token folder."""
    digests: Mapping[str, str]
    """SHA-256 of the tokens and document borders of each entry of data.train; empty for random tokens."""


def check_sources(config: Config) -> None:
    """What a dry run can know of the data: corpora are there, the tokenizer fits, and they go together.

    Raises:
        DataError: as `prepare`.
    """
    train = _parts("data.train", config.data.train, config)
    valid = _parts("data.valid", config.data.valid or (), config)
    _refuse_combinations(config, train, valid)
    if config.data.tokenizer not in (None, "train"):
        load_tokenizer(Path(config.data.tokenizer), config.model.vocab)
    for folder in (part for part in train + valid if isinstance(part, Path)):
        TokenFile.open(folder, config.model.vocab)


def prepare(config: Config, cache: Path, report: Report) -> Prepared:
    """Find the corpora, train or load the tokenizer, tokenize what isn't in `cache` yet, and open it all.

    `report` gets a line for each thing that takes time. Same configuration and same files, same result on every rank.

    Raises:
        DataError: a corpus, the tokenizer or a token folder can't be used, or they don't belong together.
        StorageError: `cache` can't be written.
    """
    train = _parts("data.train", config.data.train, config)
    valid = _parts("data.valid", config.data.valid or (), config)
    _refuse_combinations(config, train, valid)
    tokenizer = _tokenizer(train, config, cache, report)
    files = {part: _token_file(part, tokenizer, config.model.vocab, cache, report) for part in train + valid}
    _refuse_mixed_tokenizers(files.values(), tokenizer)
    shape = {"seq_len": config.data.seq_len, "micro_batch": config.data.micro_batch, "seed": config.run.seed}
    return Prepared(
        train=PackedCorpus([files[p] for p in train], **shape) if train else RandomCorpus(config.model.vocab, **shape),
        valid=PackedCorpus([files[p] for p in valid], **shape) if valid else None,
        tokenizer=tokenizer,
        valid_text=_texts(valid) if len(_texts(valid)) == len(valid) else (),
        digests={str(part if isinstance(part, Path) else part.name): _digest(files[part]) for part in train},
    )


def gzip_bits_per_byte(documents: Iterable[Document]) -> float:
    """Bits per byte of UTF-8 that `gzip -9` needs, each document on its own: what a model has to beat."""
    compressed, raw = 0, 0
    for document in documents:
        text = document.text.encode()
        compressed += len(gzip.compress(text, 9, mtime=0))
        raw += len(text)
    return 8 * compressed / raw


def _parts(key: str, spec: str | tuple[str, ...], config: Config) -> tuple[Part, ...]:
    """Empty for random tokens, and for no corpus."""
    names = (spec,) if isinstance(spec, str) else spec
    if names == ("random",):
        return ()
    if "random" in names:
        raise DataError(f"{key}={list(names)} mixes random tokens with a corpus; leave out 'random' or the rest")
    return tuple(
        Path(name) if is_token_folder(Path(name)) else TextCorpus.open(name, config.data.text_key) for name in names
    )


def _texts(parts: tuple[Part, ...]) -> tuple[TextCorpus, ...]:
    return tuple(part for part in parts if isinstance(part, TextCorpus))


def _refuse_combinations(config: Config, train: tuple[Part, ...], valid: tuple[Part, ...]) -> None:
    data = config.data
    text = next((part.name for part in _texts(train + valid)), None)
    folder = next((part for part in train if isinstance(part, Path)), None)
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
            data.tokenizer == "train" and folder is not None,
            f"data.tokenizer=train needs text, but data.train={folder} is tokenized already; "
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


def _tokenizer(train: tuple[Part, ...], config: Config, cache: Path, report: Report) -> Tokenizer | None:
    name, vocab = config.data.tokenizer, config.model.vocab
    if name is None:
        return None
    if name != "train":
        return load_tokenizer(Path(name), vocab)
    texts = _texts(train)
    path = cache / f"tokenizer-{_key([text.fingerprint for text in texts], vocab, TRAINER_SETTINGS)}.model"
    if not path.exists():
        report(f"training a tokenizer of {vocab:,} pieces on {_size(texts)}")
        begin = time.perf_counter()
        train_tokenizer((document for text in texts for document in text.documents()), vocab, path)
        report(f"trained {path} in {format_seconds(time.perf_counter() - begin)}")
    return load_tokenizer(path, vocab)


def _token_file(part: Part, tokenizer: Tokenizer | None, vocab: int, cache: Path, report: Report) -> TokenFile:
    if isinstance(part, Path):
        return TokenFile.open(part, vocab)
    assert tokenizer is not None, "text without a tokenizer is refused before"
    path = cache / f"tokens-{_key([part.fingerprint], tokenizer.sha256, FORMAT_VERSION)}"
    if not path.exists():
        _tokenize(part, tokenizer, path, report)
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


def _tokenize(corpus: TextCorpus, tokenizer: Tokenizer, path: Path, report: Report) -> None:
    report(f"tokenizing {corpus.name}: {_size([corpus])}")
    begin = last = time.perf_counter()
    with write_tokens(path, tokenizer.num_pieces, source=corpus.name, tokenizer_sha256=tokenizer.sha256) as writer:
        for batch in _batches(corpus.documents()):
            for text, tokens in zip(batch, tokenizer.encode_documents(batch), strict=True):
                writer.add(tokens, len(text.encode()))
            now = time.perf_counter()
            if now - last > _PROGRESS_SECONDS:
                last = now
                report(
                    f"tokenized {format_bytes(writer.num_bytes)}, {format_bytes(writer.num_bytes / (now - begin))}/s"
                )
    seconds, num_tokens = time.perf_counter() - begin, writer.starts[-1]
    report(
        f"tokenized {corpus.name} in {format_seconds(seconds)} ({format_bytes(writer.num_bytes / seconds)}/s): "
        f"{format_count(num_tokens)} tokens, {writer.num_bytes / num_tokens:.2f} bytes each, kept in {path}"
    )


def _batches(documents: Iterable[Document]) -> Iterator[list[str]]:
    batch: list[str] = []
    num_chars = 0
    for document in documents:
        batch.append(document.text)
        num_chars += len(document.text)
        if num_chars >= _BATCH_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


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
