"""serve: a model's tokenizer: tokenizer.json (Hugging Face's) or else tokenizer.model (sentencepiece's).

load.py opens it; dialogue.py, generate.py and evaluate.py ask it. Files are read as data, nothing in them is executed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from internevo_engine.data.tokenizer_json import parse
from internevo_engine.data.tokenizers import Tokenizer, load_tokenizer
from internevo_engine.errors import DataError
from internevo_engine.interop.hf_files import SENTENCEPIECE

TOKENIZER_JSON = "tokenizer.json"


class Vocabulary(Protocol):
    """Text to tokens and back."""

    def begin(self, text: str) -> list[int]:
        """Tokens of a text from its start: with the bos token, where the model knows one."""
        ...

    def document(self, text: str) -> list[int]:
        """Tokens of a whole document, as the model was trained on it."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens; control tokens have none."""
        ...


class SentencePieceVocabulary:
    """Of a run, and of models that come without tokenizer.json."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def begin(self, text: str) -> list[int]:
        return [self.tokenizer.bos_id, *self.tokenizer.encode(text)]

    def document(self, text: str) -> list[int]:
        return [*self.begin(text), self.tokenizer.eos_id]

    def decode(self, tokens: Sequence[int]) -> str:
        """A model may have more rows than there are pieces; those have no text."""
        return self.tokenizer.decode([token for token in tokens if token < self.tokenizer.num_pieces])


class HfVocabulary:
    """tokenizer.json, read by the package tokenizers."""

    def __init__(self, path: Path, vocab: int) -> None:
        """Raises DataError where the file can't be read or has ids that the embedding, `vocab` rows, doesn't have."""
        self._tokenizer = parse(path.read_bytes(), str(path))
        largest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        if largest >= vocab:
            raise DataError(f"{path} has token id {largest}, the model's embedding {vocab} rows: not of one model")

    @property
    def marks(self) -> list[str]:
        """Texts that are a control token each wherever they stand: <|im_end|>, say."""
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]

    def begin(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def document(self, text: str) -> list[int]:
        """As transformers encodes it: whether bos and eos belong to it, the file says."""
        return self.begin(text)

    def encode(self, text: str) -> list[int]:
        """Without bos; marks in the text are their tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens)


def open_vocabulary(folder: Path, vocab: int) -> SentencePieceVocabulary | HfVocabulary:
    """The tokenizer of a model folder, for a model of `vocab` embedding rows.

    Raises:
        DataError: there is none, or it can't be used.
    """
    if (folder / TOKENIZER_JSON).is_file():
        return HfVocabulary(folder / TOKENIZER_JSON, vocab)
    if (folder / SENTENCEPIECE).is_file():
        return SentencePieceVocabulary(load_tokenizer(folder / SENTENCEPIECE, vocab))
    raise DataError(f"{folder} has no tokenizer; put its {SENTENCEPIECE} or {TOKENIZER_JSON} there")
