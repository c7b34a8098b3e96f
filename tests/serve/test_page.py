"""The web page, as Streamlit runs it, over a real server; a browser is not needed."""

import sys
from pathlib import Path

import pytest

from internevo_engine.__main__ import main
from internevo_engine.serve import web
from tests.serve.models import speaker, write_speaker
from tests.serve.test_server import serving


def test_a_question_is_answered_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    testing = pytest.importorskip("streamlit.testing.v1", reason="the extra [chat] is not installed")
    with serving(speaker(tmp_path)) as server:
        monkeypatch.setattr(sys, "argv", [str(web.PAGE), server.url])
        page = testing.AppTest.from_file(str(web.PAGE), default_timeout=60).run()
        assert page.title[0].value == "engine"
        page.chat_input[0].set_value("hello").run()
        assert not page.exception
        assert [message.name for message in page.chat_message] == ["user", "assistant"]
        assert page.chat_message[1].text[0].value
        page.chat_input[0].set_value("long " * 1000).run()
        assert "shorten it" in page.error[0].value
        page.button[0].click().run()
        assert not page.chat_message


def test_the_page_is_for_this_machine_only() -> None:
    command = web.page_command("http://127.0.0.1:1", 8501)
    assert command[command.index("--server.address") + 1] == "127.0.0.1"
    assert command[command.index("--browser.gatherUsageStats") + 1] == "false"


@pytest.mark.parametrize(("marks", "text"), [(False, "has no chat template"), (True, "internevo-engine[chat]")])
def test_what_keeps_the_page_from_opening_is_said(tmp_path: Path, monkeypatch, capsys, marks: bool, text: str) -> None:
    monkeypatch.setattr(web, "find_spec", lambda _: None)
    assert main(["chat", str(write_speaker(tmp_path / "model", marks=marks)), "--web", "--device", "cpu"]) == 2
    assert text in capsys.readouterr().err
