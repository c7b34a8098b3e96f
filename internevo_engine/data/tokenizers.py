"""data: from text to token ids and back, with sentencepiece. Between corpora (text) and formats (token files).

Models from elsewhere may bring a tokenizer.json instead, which data/tokenizer_json.py makes look like sentencepiece.

A tokenizer that we train is lossless: decode(encode(text)) == text. One exception is sentencepiece's own: the character
U+2581, its mark for a space, comes back as a space.
"""

import hashlib
import io
import os
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import sentencepiece

from internevo_engine.data.records import Document
from internevo_engine.data.tokenizer_json import JsonProcessor
from internevo_engine.errors import DataError, StorageError

TRAINER_SETTINGS: dict[str, Any] = {
    "model_type": "bpe",
    # Lossless: unknown characters become bytes, and no character is normalized, added or dropped.
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    # Runs of spaces become pieces (indentation), and so does punctuation with its neighbours ("):\n", "(self").
    # Bytes per token, 4,096 pieces, held-out standard library: 2.23 with neither, 3.41 with the first, 3.62 with both.
    "allow_whitespace_only_pieces": True,
    "split_by_unicode_script": False,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
    "max_sentence_length": 1 << 20,
    "minloglevel": 2,
}

_SAMPLE_CHARS = 4000
"""Training text is fed in stretches of at most this many characters; the trainer's limit is 65,535."""
_NUM_SAMPLES = 10_000
"""Stretches the trainer gets at most: 40 M characters give the same pieces as 40 G, within noise."""
_ENCODE_CHARS = 1_000_000
"""Longer texts are encoded in stretches, for sentencepiece takes about 45 bytes of memory per character."""

_TRAINER_LIMITS = (
    (
        r"too high.*<= (\d+)",
        "model.vocab={vocab} is more than this corpus can fill: set model.vocab={limit} or less, or add text",
    ),
    (
        r"smaller than required_chars\. \d+ vs (\d+)",
        "model.vocab={vocab} is too small for the characters of this corpus: set model.vocab={limit} or more",
    ),
)


Processor = sentencepiece.SentencePieceProcessor | JsonProcessor


class Tokenizer:
    """A tokenizer and the file it came from."""

    def __init__(self, path: Path, processor: Processor, sha256: str) -> None:
        self.path = path
        self.sha256 = sha256
        self.num_pieces: int = processor.get_piece_size()
        self.bos_id: int = processor.bos_id()
        self.eos_id: int = processor.eos_id()
        self._processor = processor

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without bos and eos."""
        return [token for ids in self._processor.encode(list(_stretches(text, _ENCODE_CHARS))) for token in ids]

    def piece_id(self, name: str) -> int | None:
        """The token of the piece called `name`; None where there is none."""
        token = self._processor.piece_to_id(name)
        return None if token == self._processor.unk_id() else token

    def encode_documents(self, texts: Sequence[str], num_threads: int = -1) -> list[npt.NDArray[np.int64]]:
        """bos, tokens, eos of each text, int64. sentencepiece spreads them over `num_threads`, -1: over all cores."""
        stretches = [list(_stretches(text, _ENCODE_CHARS)) for text in texts]
        flat = [stretch for document in stretches for stretch in document]
        encoded = iter(self._processor.encode(flat, num_threads=num_threads))
        bos, eos = [self.bos_id], [self.eos_id]
        return [np.concatenate((bos, *islice(encoded, len(document)), eos), dtype=np.int64) for document in stretches]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of the token ids; bos and eos have none."""
        return self._processor.decode(list(tokens))


def load_tokenizer(path: Path, vocab: int) -> Tokenizer:
    """Load the sentencepiece model or tokenizer.json at `path` for a model of `vocab` embedding rows.

    Raises:
        DataError: no such file, not a tokenizer, no bos or eos piece, or more pieces than `vocab`.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"data.tokenizer={path}: {error.strerror}; give a sentencepiece .model file, or 'train'"
        ) from error
    processor = JsonProcessor(path, raw) if path.suffix == ".json" else _sentencepiece(path, raw)
    tokenizer = Tokenizer(path, processor, hashlib.sha256(raw).hexdigest())
    if tokenizer.num_pieces > vocab:
        raise DataError(
            f"data.tokenizer={path} has {tokenizer.num_pieces} pieces, model.vocab={vocab} has room for fewer; "
            f"set model.vocab={tokenizer.num_pieces} or give another data.tokenizer"
        )
    if min(tokenizer.bos_id, tokenizer.eos_id) < 0:
        raise DataError(
            f"data.tokenizer={path} has no bos or no eos piece, which separate documents; give another data.tokenizer"
        )
    return tokenizer


def _sentencepiece(path: Path, raw: bytes) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(raw)
    except RuntimeError as error:
        raise DataError(
            f"data.tokenizer={path} is not a sentencepiece model ({len(raw)} bytes); give a .model file, or 'train'"
        ) from error
    return processor


def train_tokenizer(documents: Iterable[Document], vocab: int, path: Path, marks: Sequence[str] = ()) -> None:
    """Train a lossless BPE of exactly `vocab` pieces: unk 0, bos 1, eos 2, `marks`, the 256 bytes, what is frequent.

    Marks are control pieces, which no text becomes.

    The same documents give the same file. It appears at `path` whole or not at all.
    Of more than 40 M characters a fixed sample is used.

    Raises:
        DataError: the corpus has too little text, or too many different characters, for `vocab` pieces.
        StorageError: `path` can't be written.
    """
    model = io.BytesIO()
    settings = {**TRAINER_SETTINGS, "vocab_size": vocab, "control_symbols": list(marks)}
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_sample(documents)), model_writer=model, **settings
        )
    except RuntimeError as error:
        raise _trainer_error(str(error), vocab) from error
    _write_whole(path, model.getvalue())


def _trainer_error(text: str, vocab: int) -> DataError:
    for pattern, message in _TRAINER_LIMITS:
        if found := re.search(pattern, text, re.DOTALL):
            return DataError(message.format(vocab=vocab, limit=found[1]))
    return DataError(f"sentencepiece can't train a tokenizer of model.vocab={vocab} pieces: {text}")


def _sample(documents: Iterable[Document]) -> list[str]:
    """All stretches of the documents, or _NUM_SAMPLES of them, each as likely as any other (Vitter's algorithm R)."""
    kept: list[str] = []
    draw = random.Random(0)
    stretches = (stretch for document in documents for stretch in _stretches(document.text, _SAMPLE_CHARS))
    for number, stretch in enumerate(stretches):
        if number < _NUM_SAMPLES:
            kept.append(stretch)
        elif (place := draw.randrange(number + 1)) < _NUM_SAMPLES:
            kept[place] = stretch
    return kept


def _stretches(text: str, size: int) -> Iterator[str]:
    """Cut `text` into stretches of at most `size` characters, after a newline where there is one."""
    begin = 0
    while begin < len(text):
        end = begin + size
        if end < len(text):
            end = text.rfind("\n", begin, end) + 1 or end
        yield text[begin:end]
        begin = end


def _write_whole(path: Path, raw: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.tmp-{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error.strerror}; free space or change data.cache") from error
