"""The server over real sockets: what clients of OpenAI's interface expect, and what hostile ones get."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from internevo_engine.errors import ConfigError
from internevo_engine.serve import server as server_module
from internevo_engine.serve.load import LanguageModel
from internevo_engine.serve.server import Limits, Server
from tests.serve.models import speaker

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 12, "seed": 3}


@contextmanager
def serving(model: LanguageModel, **limits: Any) -> Iterator[Server]:
    with Server(model, limits=Limits(**limits)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return speaker(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(model: LanguageModel) -> Iterator[Server]:
    with serving(model, body_bytes=20_000, max_tokens=100) as server:
        yield server


def ask(server: Server, method: str, path: str, body: object = None, **headers: str) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection(*server.server_address, timeout=60)
    raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, raw, headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response, content


def posted(server: Server, path: str, **body: object) -> dict[str, Any]:
    response, content = ask(server, "POST", path, body)
    assert response.status == 200, content
    return json.loads(content)


def events(server: Server, path: str, **body: object) -> list[dict[str, Any]]:
    response, content = ask(server, "POST", path, {**body, "stream": True})
    assert response.headers["Content-Type"] == "text/event-stream"
    *lines, done = [line for line in content.split(b"\n\n") if line]
    assert done == b"data: [DONE]"
    return [json.loads(line.removeprefix(b"data: ")) for line in lines]


def test_health_and_models(server: Server, model: LanguageModel) -> None:
    assert json.loads(ask(server, "GET", "/health")[1]) == {"status": "ok"}
    found = json.loads(ask(server, "GET", "/v1/models")[1])
    assert [entry["id"] for entry in found["data"]] == [model.name]
    assert ask(server, "HEAD", "/health")[1] == b""


def test_a_dialogue_is_answered_and_counted(server: Server, model: LanguageModel) -> None:
    found = posted(server, CHAT, **HELLO, model=model.name)
    (choice,) = found["choices"]
    assert found["object"] == "chat.completion"
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] == "length"
    usage = found["usage"]
    assert usage["completion_tokens"] == 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + 12
    assert posted(server, CHAT, **HELLO)["choices"] == found["choices"]
    assert posted(server, CHAT, **{**HELLO, "seed": 4})["choices"] != found["choices"]


def test_a_stream_says_the_same_in_pieces(server: Server) -> None:
    whole = posted(server, CHAT, **HELLO)
    pieces = events(server, CHAT, **HELLO, stream_options={"include_usage": True})
    deltas = [choice["delta"] for piece in pieces for choice in piece["choices"]]
    assert "".join(delta["content"] for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert [piece["choices"][0]["finish_reason"] for piece in pieces[:-1]] == [None] * (len(deltas) - 1) + ["length"]
    assert pieces[-1]["usage"] == whole["usage"]
    assert len({piece["id"] for piece in pieces}) == 1
    assert len(pieces) > 3


def test_a_text_is_continued(server: Server) -> None:
    settings = {"prompt": "def f(x):", "max_tokens": 10, "temperature": 0}
    whole = posted(server, TEXT, **settings)
    pieces = events(server, TEXT, **settings)
    assert whole["object"] == "text_completion"
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == whole["choices"][0]["text"]
    stop = whole["choices"][0]["text"][3:5]
    assert stop not in posted(server, TEXT, **settings, stop=[stop])["choices"][0]["text"]


def test_content_may_come_in_parts(server: Server) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    asked = {**HELLO, "messages": [{"role": "user", "content": parts}]}
    assert posted(server, CHAT, **asked)["choices"] == posted(server, CHAT, **HELLO)["choices"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"max_tokens": "12"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10**30}, None),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, None),
        ({"top_p": 0}, None),
        ({"seed": -1}, None),
        ({"seed": 10**30}, None),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_a_wrong_value_is_named(server: Server, change: dict[str, Any], param: str | None) -> None:
    for extra in ({}, {"stream": True}) if "stream" not in change else ({},):
        response, content = ask(server, "POST", CHAT, {**HELLO, **extra, **change})
        error = json.loads(content)["error"]
        assert response.status == 400
        assert error["type"] == "invalid_request_error"
        if param:
            assert error["param"].startswith(param)
        assert "Traceback" not in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/", None, 404),
        ("GET", "/v1/nothing", None, 404),
        ("GET", "/../../etc/passwd", None, 404),
        ("GET", CHAT, None, 405),
        ("DELETE", "/v1/models", None, 405),
        ("BREW", CHAT, None, 501),
        ("POST", CHAT, b"", 400),
        ("POST", CHAT, b"{", 400),
        ("POST", CHAT, b"\xff\xfe", 400),
        ("POST", CHAT, b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        ("POST", CHAT, b"[" * 15_000, 400),
        ("POST", CHAT, b"[]", 400),
        ("POST", CHAT, {**HELLO, "model": "gpt-4"}, 404),
        ("POST", CHAT, {**HELLO, "max_tokens": 101}, 400),
        ("POST", CHAT, {**HELLO, "messages": [{"role": "user", "content": "long " * 1000}]}, 400),
        ("POST", TEXT, {"prompt": ["a", "b"]}, 400),
        ("POST", TEXT, {"prompt": "long " * 1000, "stream": True}, 400),
        ("POST", CHAT, b"x" * 20_001, 413),
    ],
)
def test_a_bad_request_gets_a_json_error(server: Server, method: str, path: str, body: object, status: int) -> None:
    response, content = ask(server, method, path, body)
    assert response.status == status
    assert response.headers["Content-Type"] == "application/json"
    assert json.loads(content)["error"]["message"]
    assert json.loads(ask(server, "GET", "/health")[1]) == {"status": "ok"}


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /health HTTP/9.9\r\n\r\n", b"505"),
        (b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"POST /v1/completions HTTP/1.1\r\n\r\n", b"411"),
        (b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n", b"411"),
        (b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", b"413"),
        (b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"411"),
        (b"POST /v1/completions HTTP/1.1\r\nOrigin: http://evil.example\r\nContent-Length: 2\r\n\r\n{}", b"403"),
    ],
)
def test_raw_bytes_get_a_json_error(server: Server, raw: bytes, status: bytes) -> None:
    with socket.create_connection(server.server_address, timeout=60) as client:
        client.sendall(raw)
        reply = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, content = reply.partition(b"\r\n\r\n")
    assert status in head.split(b"\r\n")[0] or reply.startswith(b"{")  # HTTP/0.9 has no head
    assert json.loads(content or reply)["error"]["message"]


def test_a_client_that_is_silent_is_dropped(model: LanguageModel) -> None:
    with serving(model, seconds=0.2) as server:
        for sent in (b"", b"POST /v1/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{"):
            with socket.create_connection(server.server_address, timeout=60) as client:
                client.sendall(sent)
                assert client.recv(100) == b""


def test_more_than_may_wait_are_told_to_come_back(model: LanguageModel) -> None:
    with serving(model, waiting=0) as server:
        with server.turn():
            response, content = ask(server, "POST", CHAT, HELLO)
        assert response.status == 429
        assert response.headers["Retry-After"] == "1"
        assert json.loads(content)["error"]["type"] == "rate_limit_error"
        posted(server, CHAT, **HELLO)


def test_requests_at_the_same_time_are_answered_one_after_the_other(server: Server) -> None:
    expected = [posted(server, CHAT, **{**HELLO, "seed": seed})["choices"] for seed in range(4)]
    found = [None] * 4

    def one(seed: int) -> None:
        found[seed] = posted(server, CHAT, **{**HELLO, "seed": seed})["choices"]

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_more_connections_than_allowed_are_closed(model: LanguageModel) -> None:
    with serving(model, connections=1) as server, socket.create_connection(server.server_address, timeout=60) as first:
        first.sendall(b"GET /health HTTP/1.1\r\n\r\n")
        assert first.recv(10)
        with socket.create_connection(server.server_address, timeout=60) as second:
            assert second.recv(10) == b""


def test_a_client_that_goes_away_frees_the_model(server: Server) -> None:
    body = json.dumps({**HELLO, "max_tokens": 100, "stream": True}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(server.server_address, timeout=60) as client:
        client.sendall(head + body)
        assert client.recv(10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with a reset
    posted(server, CHAT, **HELLO)


def test_a_bug_is_reported_as_ours_and_without_its_traceback(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(server_module, "complete", broken)
    response, content = ask(server, "POST", CHAT, HELLO)
    assert (response.status, json.loads(content)["error"]["type"]) == (500, "server_error")
    assert b"secret" not in content
    assert "ZeroDivisionError: secret" in capsys.readouterr().err


def test_a_base_model_says_that_it_only_continues_text(tmp_path: Path) -> None:
    with serving(speaker(tmp_path, marks=False)) as server:
        response, content = ask(server, "POST", CHAT, HELLO)
        assert response.status == 400
        assert "use /v1/completions" in json.loads(content)["error"]["message"]
        assert posted(server, TEXT, prompt="Once", max_tokens=3)["choices"][0]["text"] is not None


def test_a_port_that_is_taken_is_named(server: Server, model: LanguageModel) -> None:
    port = server.server_address[1]
    with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: Address already in use; choose another --host or --port"):
        Server(model, port=port)


def test_the_official_client_talks_to_it(server: Server, model: LanguageModel) -> None:
    openai = pytest.importorskip("openai", reason="the package openai is not installed")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    assert [entry.id for entry in client.models.list()] == [model.name]
    whole = client.chat.completions.create(model=model.name, **HELLO)
    stream = client.chat.completions.create(model=model.name, **HELLO, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content
    with client.chat.completions.stream(model=model.name, **HELLO, stop=[text[6:8]]) as pieces:
        assert pieces.get_final_completion().choices[0].message.content == text[: text.index(text[6:8])]
    with pytest.raises(openai.BadRequestError, match="max_tokens=101 is more than this server gives"):
        client.chat.completions.create(model=model.name, **{**HELLO, "max_tokens": 101})
