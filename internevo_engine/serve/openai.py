"""serve: OpenAI's HTTP interface as data: what a request may hold, what a reply looks like. server.py moves the bytes.

What would change the answer and isn't done here (tools, logprobs, ...) is refused rather than ignored.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from internevo_engine.data.records import Role, Turn
from internevo_engine.errors import EngineError, UsageError
from internevo_engine.serve.generate import Answer, Chunk, Request
from internevo_engine.serve.load import LanguageModel
from internevo_engine.serve.sampling import Sampling

Json = dict[str, Any]
Text = Annotated[str, Field(max_length=1 << 20)]
Zero = Annotated[float, Field(ge=0, le=0)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]


class ApiError(EngineError):
    """What a client did wrong, or has to wait for: an HTTP status and OpenAI's error object."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        self.status = status
        kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
        self.body: Json = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        super().__init__(message)


class Body(BaseModel):
    """Keys that are not named here are ignored, as clients send many that change nothing (user, metadata, ...)."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)


class TextPart(Body):
    type: Literal["text"]
    text: Text


class Message(Body):
    role: Role | Literal["developer"]
    content: Text | Annotated[list[TextPart], Field(max_length=1000)]

    @property
    def turn(self) -> Turn:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Turn("system" if self.role == "developer" else self.role, content)


class TextFormat(Body):
    type: Literal["text"]


class StreamOptions(Body):
    include_usage: bool = False


class Settings(Body):
    """What both kinds of requests have."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """Not OpenAI's, but vLLM's and LMDeploy's; so is the next."""
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: None = None
    logprobs: Literal[False] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    response_format: TextFormat | None = None

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.repetition_penalty, self.temperature, self.top_k, self.top_p, self.seed)

    @property
    def stops(self) -> Sequence[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or ()


class ChatBody(Settings):
    """/v1/chat/completions"""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """The newer name of max_tokens."""

    def request(self, model: LanguageModel, max_tokens: int) -> Request:
        """Raises UsageError where the model can't be talked to in this way."""
        if model.prompt is None:
            raise UsageError(f"{model.name} has no chat template and continues text only: use /v1/completions")
        prompt = model.prompt([message.turn for message in self.messages])
        limit = _limit(self.max_completion_tokens or self.max_tokens, max_tokens)
        return Request(prompt, self.sampling, limit, self.stops)


class CompletionBody(Settings):
    """/v1/completions"""

    prompt: Text

    def request(self, model: LanguageModel, max_tokens: int) -> Request:
        prompt = model.vocabulary.begin(self.prompt)
        return Request(prompt, self.sampling, _limit(self.max_tokens, max_tokens), self.stops, continues_text=True)


def _limit(asked: int | None, most: int) -> int:
    if asked is not None and asked > most:
        raise UsageError(f"max_tokens={asked} is more than this server gives: {most} at most")
    return asked or most


BodyT = TypeVar("BodyT", bound=BaseModel)


def parse(kind: type[BodyT], raw: bytes) -> BodyT:
    """Raises ApiError that names the first key that is wrong."""
    try:
        return kind.model_validate_json(raw, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(str(key) for key in first["loc"]) or None
        raise ApiError(400, f"{param or 'the body'}: {first['msg']}", param=param) from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None


@dataclass(frozen=True)
class Reply:
    """How answers of one kind are put into JSON."""

    kind: str
    """The id's beginning."""
    whole: str
    piece: str
    """Values of 'object', of a whole answer and of a piece of a stream."""
    say_whole: Callable[[str], Json]
    say_piece: Callable[[str, bool], Json]
    """(text, whether it is the first)"""

    def answer(self, model: LanguageModel, request: Request, answer: Answer) -> Json:
        choice = {"index": 0, **self.say_whole(answer.text), "logprobs": None, "finish_reason": answer.finish}
        return {
            **self._head(model, self.whole),
            "choices": [choice],
            "usage": usage(len(request.prompt), len(answer.tokens)),
        }

    def stream(
        self, model: LanguageModel, request: Request, chunks: Iterator[Chunk], *, with_usage: bool
    ) -> Iterator[Json]:
        """One object for each chunk that has text, the last with the reason of its end, then usage if asked for."""
        head, num_tokens, is_first = self._head(model, self.piece), 0, True
        for chunk in chunks:
            num_tokens += 1
            if chunk.text or chunk.finish:
                said = self.say_piece(chunk.text, is_first)
                yield {**head, "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": chunk.finish}]}
                is_first = False
        if with_usage:
            yield {**head, "choices": [], "usage": usage(len(request.prompt), num_tokens)}

    def _head(self, model: LanguageModel, kind: str) -> Json:
        return {
            "id": f"{self.kind}-{uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model.name,
        }


def usage(num_prompt: int, num_answer: int) -> Json:
    return {"prompt_tokens": num_prompt, "completion_tokens": num_answer, "total_tokens": num_prompt + num_answer}


CHAT = Reply(
    "chatcmpl",
    "chat.completion",
    "chat.completion.chunk",
    lambda text: {"message": {"role": "assistant", "content": text}},
    lambda text, is_first: {"delta": {"role": "assistant", "content": text} if is_first else {"content": text}},
)
COMPLETION = Reply(
    "cmpl", "text_completion", "text_completion", lambda text: {"text": text}, lambda text, _: {"text": text}
)
