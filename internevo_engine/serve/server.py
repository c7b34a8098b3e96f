"""serve: an OpenAI-compatible HTTP server over one model. `python -m internevo_engine serve`, and behind the web page.

    GET /health   GET /v1/models   POST /v1/chat/completions   POST /v1/completions

One answer is written at a time, and some wait; whoever comes then is told to come back. It trusts no client: bodies,
answers, connections and waiting are bounded, and every error is JSON.
"""

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Any

from internevo_engine.errors import ConfigError, UsageError
from internevo_engine.serve.generate import complete, generate
from internevo_engine.serve.load import LanguageModel, load_model
from internevo_engine.serve.openai import (
    CHAT,
    COMPLETION,
    ApiError,
    ChatBody,
    CompletionBody,
    Json,
    Reply,
    parse,
)

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Limits:
    """What one client can't take from the others."""

    body_bytes: int = 1 << 20
    max_tokens: int = 2048
    """Of one answer; also what is given where a client asks for no number."""
    waiting: int = 16
    """Requests that wait for their turn."""
    connections: int = 64
    seconds: float = 30.0
    """For a client to send or take bytes."""


class Server(ThreadingHTTPServer):
    """A listening server; `serve_forever` answers."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, model: LanguageModel, host: str = LOOPBACK, port: int = 0, limits: Limits | None = None) -> None:
        """Listen at once; port 0 takes a free one.

        Raises:
            ConfigError: host and port can't be had.
        """
        self.model, self.limits = model, limits or Limits()
        self._turn, self._places = Lock(), BoundedSemaphore(self.limits.waiting + 1)
        self._connections = BoundedSemaphore(self.limits.connections)
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise ConfigError(f"{host}:{port}: {error.strerror}; choose another --host or --port") from None

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host}:{port}"

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the model. Raises ApiError where too many wait already."""
        if not self._places.acquire(blocking=False):
            raise ApiError(429, f"{self.limits.waiting} requests are waiting already; try again later")
        try:
            with self._turn:
                yield
        finally:
            self._places.release()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._connections.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of ours."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "internevo_engine", ""

    def setup(self) -> None:
        self._is_streaming = False
        super().setup()
        self.connection.settimeout(self.server.limits.seconds)

    def _route(self) -> None:
        try:
            self._answer()
        except ApiError as error:
            self._refuse(error)
        except UsageError as error:
            self._refuse(ApiError(400, str(error)))
        except OSError:  # the client has gone
            self.close_connection = True
        except Exception:
            traceback.print_exc()
            self._refuse(ApiError(500, "a bug in the server; its log has the details"))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _route  # noqa: N815

    def _answer(self) -> None:
        if "Origin" in self.headers:
            raise ApiError(403, "requests from web pages are refused: they would let any page use this model")
        path = self.path.partition("?")[0]
        methods = ROUTES.get(path)
        if methods is None:
            raise ApiError(404, f"there is no {path}; there are {', '.join(ROUTES)}")
        if self.command not in methods:
            raise ApiError(405, f"{path} takes {' or '.join(methods)}, not {self.command}")
        methods[self.command](self)

    def body(self) -> bytes:
        """Raises ApiError where it is too large or its length isn't said."""
        length, most = self.headers.get("Content-Length", ""), self.server.limits.body_bytes
        if not (length.isascii() and length.isdigit()):
            raise ApiError(411, "the request needs a Content-Length")
        if len(length) > 18 or int(length) > most:
            raise ApiError(413, f"the body has {length[:18]} bytes; this server takes {most} at most")
        return self.rfile.read(int(length))

    def reply(self, body: Json) -> None:
        self._send(200, body)

    def reply_stream(self, events: Iterable[Json]) -> None:
        """Server-sent events, each sent as it comes; what goes wrong before the first one is an error as any other."""
        events = iter(events)
        first = next(events)
        self.close_connection = self._is_streaming = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        for event in chain([first], events):
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def _refuse(self, error: ApiError) -> None:
        if self._is_streaming:
            self.wfile.write(f"data: {json.dumps(error.body)}\n\n".encode())
        else:
            self._send(error.status, error.body)

    def _send(self, status: int, body: Json) -> None:
        """A refused request's body may not have been read, so its connection ends."""
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        if status == 429:
            self.send_header("Retry-After", "1")
        if status >= 400:
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses: a request line or headers that are none."""
        self._refuse(ApiError(code, message or HTTPStatus(code).phrase))

    def log_message(self, format: str, *args: Any) -> None:
        """Paths and prompts of others are not for the log; errors of ours are printed where they happen."""


def _health(handler: Handler) -> None:
    handler.reply({"status": "ok"})


def _models(handler: Handler) -> None:
    model = {"id": handler.server.model.name, "object": "model", "created": 0, "owned_by": "internevo_engine"}
    handler.reply({"object": "list", "data": [model]})


def _respond(handler: Handler, kind: type[ChatBody] | type[CompletionBody], reply: Reply) -> None:
    """Parse, wait for the model, answer."""
    server = handler.server
    body = parse(kind, handler.body())
    model = server.model
    if body.model not in (None, model.name):
        raise ApiError(404, f"there is no model {body.model!r} here, only {model.name!r}", param="model")
    request = body.request(model, server.limits.max_tokens)
    with server.turn():
        if body.stream:
            with closing(generate(model, [request])) as chunks:
                with_usage = body.stream_options is not None and body.stream_options.include_usage
                handler.reply_stream(reply.stream(model, request, chunks, with_usage=with_usage))
        else:
            handler.reply(reply.answer(model, request, complete(model, [request])[0]))


ROUTES: Mapping[str, Mapping[str, Callable[[Handler], None]]] = {
    "/health": {"GET": _health},
    "/v1/models": {"GET": _models},
    "/v1/chat/completions": {"POST": lambda handler: _respond(handler, ChatBody, CHAT)},
    "/v1/completions": {"POST": lambda handler: _respond(handler, CompletionBody, COMPLETION)},
}


def serve(arguments: Sequence[str]) -> int:
    """The verb; returns the exit code when Ctrl-C ends it.

    Raises:
        EngineError: the model can't be loaded, or the address can't be had.
    """
    parser = argparse.ArgumentParser(prog="python -m internevo_engine serve", description="OpenAI's HTTP interface.")
    parser.add_argument("model", type=Path, metavar="MODEL", help="a run, an engine folder or a Hugging Face folder")
    parser.add_argument("--host", default=LOOPBACK, help=f"address to listen on ({LOOPBACK}: this machine only)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes a free one (8000)")
    parser.add_argument("--max-tokens", type=int, default=Limits.max_tokens, metavar="N", help="of one answer (2048)")
    parser.add_argument("--waiting", type=int, default=Limits.waiting, metavar="N", help="requests that wait (16)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    asked = parser.parse_args(arguments)
    limits = Limits(max_tokens=asked.max_tokens, waiting=asked.waiting)
    with Server(load_model(asked.model, asked.device), asked.host, asked.port, limits) as server:
        print(f"{server.model.name} ({server.model.origin}) at {server.url}/v1; Ctrl-C ends it", flush=True)
        if asked.host != LOOPBACK:
            print("warning: whoever reaches this address can use it; a proxy that asks for a key belongs in front")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0
