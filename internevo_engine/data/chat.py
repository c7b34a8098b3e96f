"""data: from a dialogue to tokens of which only the answers are counted. Between records and token folders.

A template is a table: what stands before and after the words of each role. Marks are control tokens, looked up and
never spelled, so no user can write one. What is counted is an answer and the mark that ends it, as that is what the
model has to produce; everything else is stored complemented (arrays).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby

import numpy as np
import numpy.typing as npt

from internevo_engine.data.records import Document, Role, Turn
from internevo_engine.data.tokenizers import Tokenizer
from internevo_engine.errors import DataError


class Mark(str):
    """A control token, by name."""


@dataclass(frozen=True)
class Frame:
    """What stands around the words of a role."""

    before: tuple[str, ...]
    end: tuple[Mark, ...]
    """Counted where the words are."""
    after: str = "\n"


START, END = Mark("<|im_start|>"), Mark("<|im_end|>")
CHATML: Mapping[Role, Frame] = {
    "system": Frame((START, "system\n"), (END,)),
    "user": Frame((START, "user\n"), (END,)),
    "assistant": Frame((START, "assistant\n"), (END,)),
}
TEMPLATES: Mapping[str, Mapping[Role, Frame]] = {
    "internlm": {
        "system": Frame(("<|System|>:",), ()),
        "user": Frame(("<|User|>:",), (Mark("<eoh>"),)),
        "assistant": Frame(("<|Bot|>:",), (Mark("<eoa>"),)),
    },
    "internlm2": CHATML,
    "chatml": CHATML,
}
"""By the value of data.chat. InternLM3 uses the second, too; chatml stands in no bos and eos, as SmolLM2 and Qwen."""
BARE = frozenset({"chatml"})
"""Templates without bos before and eos behind the turns."""

SPELLED_MARK = re.compile(r"(?<=<)(?=\|im_start\|>|\|im_end\|>|eoh>|eoa>)")
"""Behind the first character of a mark."""

RESERVED_IDS: Mapping[int, Mapping[str, int]] = {
    103_168: {"<eoh>": 103_027, "<eoa>": 103_028},
    92_544: {"<|im_start|>": 92_543, "<|im_end|>": 92_542},
}
"""Ids of marks by the number of pieces, for tokenizers whose .model has unnamed places for them: InternLM, InternLM2.
InternEvo's Alpaca tool writes 103167 and 103166 instead, which nothing else knows."""

Segment = tuple[str, bool]
"""Words or a Mark, and whether they are counted."""


def encode_dialogue(document: Document, template: str, tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """bos, the turns, eos (or the turns alone); int64, complemented where not counted.

    Raises:
        DataError: the tokenizer has no piece for a mark of the template.
    """
    segments = (segment for turn in document.turns for segment in _segments(turn, TEMPLATES[template]))
    runs = _encode_segments(segments, tokenizer)
    tokens = [token if counted else ~token for ids, counted in runs for token in ids]
    around = ([], []) if template in BARE else ([~tokenizer.bos_id], [~tokenizer.eos_id])
    return np.array([*around[0], *tokens, *around[1]], np.int64)


def encode_prompt(turns: Sequence[Turn], template: str, tokenizer: Tokenizer) -> list[int]:
    """bos (but not for BARE), the turns, what stands before the next answer's words: token for token what training saw.

    Raises:
        DataError: the tokenizer has no piece for a mark of the template.
    """
    frames = TEMPLATES[template]
    said = (segment for turn in turns for segment in _segments(turn, frames))
    segments = chain(said, ((part, False) for part in frames["assistant"].before))
    bos = [] if template in BARE else [tokenizer.bos_id]
    return [*bos, *(token for ids, _ in _encode_segments(segments, tokenizer) for token in ids)]


def marks_of(template: str) -> list[str]:
    """The names of all marks of a template."""
    parts = (part for frame in TEMPLATES[template].values() for part in (*frame.before, *frame.end))
    return list(dict.fromkeys(part for part in parts if isinstance(part, Mark)))


def end_of_answer(template: str, tokenizer: Tokenizer) -> int:
    """The mark that ends what the assistant says. Raises DataError as mark_id."""
    return mark_id(tokenizer, TEMPLATES[template]["assistant"].end[0])


def answer_bytes(document: Document) -> int:
    """UTF-8 size of what is counted."""
    return sum(len(turn.content.encode()) for turn in document.turns if turn.role == "assistant")


def mark_id(tokenizer: Tokenizer, name: str) -> int:
    """The token of a mark: the tokenizer's piece of that name, else the place reserved for it.

    Raises:
        DataError: there is neither.
    """
    token = tokenizer.piece_id(name)
    if token is None:
        token = RESERVED_IDS.get(tokenizer.num_pieces, {}).get(name)
    if token is None:
        raise DataError(
            f"{tokenizer.path} ({tokenizer.num_pieces} pieces) has no piece {name}, which data.chat needs; "
            f"give the tokenizer of a chat model, or another data.chat ({', '.join(TEMPLATES)})"
        )
    return token


def _encode_words(text: str, tokenizer: Tokenizer) -> list[int]:
    """Tokens of words; a mark spelled out in them is cut in two, or some tokenizers would take it for the mark."""
    return [token for part in SPELLED_MARK.split(text) for token in tokenizer.encode(part)]


def _encode_segments(segments: Iterable[Segment], tokenizer: Tokenizer) -> Iterator[tuple[list[int], bool]]:
    """Tokens of neighbouring segments of one kind, and whether they are counted."""
    for (is_mark, counted), group in groupby(segments, key=lambda segment: (isinstance(segment[0], Mark), segment[1])):
        texts = [text for text, _ in group]
        ids = [mark_id(tokenizer, name) for name in texts] if is_mark else _encode_words("".join(texts), tokenizer)
        yield ids, counted


def _segments(turn: Turn, template: Mapping[Role, Frame]) -> Iterator[Segment]:
    frame, counted = template[turn.role], turn.role == "assistant"
    yield from ((part, False) for part in frame.before)
    yield turn.content, counted
    yield from ((mark, counted) for mark in frame.end)
    yield frame.after, False


def encode_documents(
    documents: Sequence[Document], template: str | None, tokenizer: Tokenizer, num_threads: int
) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
    """Tokens of each document and the UTF-8 bytes that they count; texts all at once, for speed."""
    encoded = iter(tokenizer.encode_documents([d.text for d in documents if not d.turns], num_threads))
    for document in documents:
        if document.turns:
            assert template is not None, "dialogues are read only where there is a template"
            yield encode_dialogue(document, template, tokenizer), answer_bytes(document)
        else:
            yield next(encoded), len(document.text.encode())
