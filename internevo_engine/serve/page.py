"""serve: the web page, a Streamlit script over the OpenAI-compatible server. web.py starts it: page.py URL.

It knows nothing of the engine: what it shows came over HTTP. Streamlit runs it again at every touch.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import streamlit as st  # the extra [chat]  # pyright: ignore[reportMissingImports]

Message = Mapping[str, str]


def main(url: str) -> None:
    """Draw the page: what was said, a line to write in, settings at the side."""
    name = _get(f"{url}/v1/models")["data"][0]["id"]
    st.set_page_config(page_title=name, page_icon="💬")
    st.title(name)
    settings = _settings()
    history: list[Message] = st.session_state.setdefault("history", [])
    if st.sidebar.button("New dialogue"):
        history.clear()
    for message in history:
        with st.chat_message(message["role"]):
            st.text(message["content"])
    if text := st.chat_input("Write something"):
        history.append({"role": "user", "content": text})
        with st.chat_message("user"):
            st.text(text)
        with st.chat_message("assistant"):
            history.append({"role": "assistant", "content": _answer(url, history, settings)})


def _settings() -> Mapping[str, Any]:
    with st.sidebar:
        return {
            "temperature": st.slider("Temperature", 0.0, 2.0, 0.7),
            "top_p": st.slider("Top p", 0.05, 1.0, 0.95),
            "max_tokens": st.slider("Longest answer, in tokens", 16, 1024, 256),
        }


def _answer(url: str, history: Sequence[Message], settings: Mapping[str, Any]) -> str:
    """Show the answer as it grows, as plain text: a model's markup is not to be rendered."""
    place, shown = st.empty(), ""
    try:
        for text in _stream(url, history, settings):
            shown += text
            place.text(shown)
    except HTTPError as error:
        shown = json.load(error)["error"]["message"]
        place.error(shown)
    return shown


def _stream(url: str, history: Sequence[Message], settings: Mapping[str, Any]) -> Iterator[str]:
    body = json.dumps({"messages": history, "stream": True, **settings}).encode()
    request = Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urlopen(request) as events:
        for line in events:
            if line.startswith(b"data: {"):
                for choice in json.loads(line.removeprefix(b"data: "))["choices"]:
                    yield choice["delta"].get("content", "")


def _get(url: str) -> Any:
    with urlopen(url) as reply:
        return json.load(reply)


if __name__ == "__main__":
    main(sys.argv[1])
