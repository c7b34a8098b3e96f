"""serve: from prompts to answers, token by token. Stands on decode, sampling and stream; chat and server listen.

A batch is read together and written together; a row that has ended leaves it.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

import torch
from torch import Tensor

from internevo_engine.errors import UsageError
from internevo_engine.serve.decode import Cache, extend
from internevo_engine.serve.load import LanguageModel
from internevo_engine.serve.sampling import GREEDY, Sampling, choose
from internevo_engine.serve.stream import TextStream

Finish = Literal["stop", "length"]
"""A stop token or string came, or there is no room: OpenAI's words."""
CONTEXT_TOKENS = 8
"""Of the prompt, for the text that continues it: more than the longest character."""


@dataclass(frozen=True)
class Request:
    """What is asked of a model."""

    prompt: Sequence[int]
    sampling: Sampling = GREEDY
    max_tokens: int | None = None
    """None: until the model stops or its context is full."""
    stop: Sequence[str] = ()
    """Texts before which the answer ends."""
    continues_text: bool = False
    """The answer goes on where the prompt's text ends; else it is a text of its own, as in a dialogue."""


@dataclass(frozen=True)
class Chunk:
    """One token of one answer."""

    row: int
    """Number of the request."""
    token: int
    text: str
    """What it adds to the answer; often nothing, as characters and stop strings are awaited."""
    finish: Finish | None
    """Why the answer ends here."""


@dataclass(frozen=True)
class Answer:
    """A whole one."""

    tokens: tuple[int, ...]
    """The token that ended it included."""
    text: str
    finish: Finish


def complete(model: LanguageModel, requests: Sequence[Request]) -> list[Answer]:
    """The answers to all requests, in order. Raises UsageError as `generate`."""
    tokens: list[list[int]] = [[] for _ in requests]
    texts = [""] * len(requests)
    finishes: list[Finish] = ["length"] * len(requests)
    for chunk in generate(model, requests):
        tokens[chunk.row].append(chunk.token)
        texts[chunk.row] += chunk.text
        finishes[chunk.row] = chunk.finish or "length"
    return [Answer(tuple(ids), text, finish) for ids, text, finish in zip(tokens, texts, finishes, strict=True)]


@torch.no_grad()
def generate(model: LanguageModel, requests: Sequence[Request]) -> Generator[Chunk, None, None]:
    """A chunk for every token of every answer, as they come.

    Raises:
        UsageError: a prompt is empty or leaves no room in the model's context.
    """
    for request in requests:
        _check(request, model.max_len)
    rows = [_Row(number, request, model) for number, request in enumerate(requests)]
    cache = Cache(model.decoder, len(rows), max(row.limit for row in rows))
    new = [request.prompt for request in requests]
    while rows:
        logits_BV = extend(model.decoder, cache, *_padded(new, model.decoder.embedding.weight.device))
        chunks = [row.take(logits_V) for row, logits_V in zip(rows, logits_BV, strict=True)]
        yield from chunks
        going = [place for place, chunk in enumerate(chunks) if chunk.finish is None]
        if len(going) < len(rows):
            cache.keep(going)
            rows = [rows[place] for place in going]
        new = [row.tokens[-1:] for row in rows]


class _Row:
    """One answer in the making."""

    def __init__(self, number: int, request: Request, model: LanguageModel) -> None:
        self.tokens = list(request.prompt)
        self.limit = min(model.max_len, len(self.tokens) + (request.max_tokens or model.max_len))
        """Tokens of prompt and answer."""
        self._number, self._sampling, self._stop_ids = number, request.sampling, model.stop_ids
        self._generator = request.sampling.generator()
        context = self.tokens[-CONTEXT_TOKENS:] if request.continues_text else ()
        self._stream = TextStream(model.vocabulary.decode, stop=request.stop, context=context)

    def take(self, logits_V: Tensor) -> Chunk:
        """Choose the next token."""
        token = choose(logits_V, self.tokens, self._sampling, self._generator)
        self.tokens.append(token)
        if token in self._stop_ids:
            return Chunk(self._number, token, self._stream.finish(), "stop")
        text = self._stream.push(token)
        if len(self.tokens) == self.limit and not self._stream.is_stopped:
            text += self._stream.finish()
        finish = "stop" if self._stream.is_stopped else "length" if len(self.tokens) == self.limit else None
        return Chunk(self._number, token, text, finish)


def _check(request: Request, max_len: int) -> None:
    if not request.prompt:
        raise UsageError("the prompt has no token; write something")
    if len(request.prompt) >= max_len:
        raise UsageError(
            f"the prompt has {len(request.prompt)} tokens, and the model's context of {max_len} must hold the answer "
            "too; shorten it"
        )
    if request.max_tokens is not None and request.max_tokens < 1:
        raise UsageError(f"max_tokens={request.max_tokens}: give a number of at least 1")


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """[B, S] with zeros behind the shorter rows, and their lengths [B]."""
    columns = list(zip_longest(*rows, fillvalue=0))
    return torch.tensor(columns, device=device).T, torch.tensor([len(row) for row in rows], device=device)
