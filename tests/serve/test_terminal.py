"""The terminal: typed, piped, interrupted."""

import io
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from internevo_engine.__main__ import main
from internevo_engine.data.records import Turn
from internevo_engine.errors import UsageError
from internevo_engine.serve.conversation import Conversation
from internevo_engine.serve.sampling import GREEDY
from tests.serve.models import MAX_LEN, speaker, write_speaker

ROOT = Path(__file__).parents[2]


def piped(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_lines_in_answers_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    folder = write_speaker(tmp_path / "model")
    settings = ["--device", "cpu", "--temperature", "0", "--max-tokens", "8"]
    piped(monkeypatch, "one\n\n/reset\none\n/system be brief\n/reset\none\n/nonsense\n/quit\nnever\n")
    assert main(["chat", str(folder), *settings]) == 0
    written = capsys.readouterr().out
    answers, _, rest = written.partition("/reset")
    first, second, third = answers.rstrip("\n").split("\n")[:3]
    assert first == second != third
    assert "forget what was said" in rest
    assert all(letter.isprintable() or letter == "\n" for letter in written)


def test_the_history_is_part_of_the_prompt_and_its_oldest_part_is_forgotten(tmp_path: Path) -> None:
    talk = Conversation(speaker(tmp_path), GREEDY, max_tokens=30)
    first = "".join(talk.ask("hello"))
    assert talk.turns == [Turn("user", "hello"), Turn("assistant", first)]
    asked = talk.model.prompt([*talk.turns, Turn("user", "and")])
    assert list(talk._request("and").prompt) == asked
    for _ in range(6):
        "".join(talk.ask("more"))
    assert Turn("user", "hello") not in talk.turns
    assert talk.turns[-2] == Turn("user", "more")
    assert len(talk._request("more").prompt) + 30 <= MAX_LEN


def test_an_answer_that_may_be_long_leaves_the_history_half_of_the_context(tmp_path: Path) -> None:
    talk = Conversation(speaker(tmp_path), GREEDY, max_tokens=10 * MAX_LEN)
    talk.turns = [Turn("user", "hello"), Turn("assistant", "yes")]
    request = talk._request("and")
    assert list(request.prompt) == talk.model.prompt([*talk.turns, Turn("user", "and")])
    assert len(talk.turns) == 2


def test_what_is_too_long_is_refused_and_not_remembered(tmp_path: Path) -> None:
    talk = Conversation(speaker(tmp_path), GREEDY, max_tokens=30)
    with pytest.raises(UsageError, match="shorten it"):
        list(talk.ask("long " * MAX_LEN))
    assert talk.turns == []


def test_an_answer_that_is_broken_off_is_remembered_so_far(tmp_path: Path) -> None:
    talk = Conversation(speaker(tmp_path), GREEDY, max_tokens=100)
    answer = talk.ask("go")
    heard = "".join(next(answer) for _ in range(10))
    answer.close()
    assert talk.turns == [Turn("user", "go"), Turn("assistant", heard)]


def test_a_base_model_continues_the_line(tmp_path: Path) -> None:
    talk = Conversation(speaker(tmp_path, marks=False), GREEDY, max_tokens=10)
    request = talk._request("Once")
    assert request.continues_text
    assert list(request.prompt) == talk.model.vocabulary.begin("Once")


def test_ctrl_c_ends_the_answer_and_not_the_program(tmp_path: Path) -> None:
    folder = write_speaker(tmp_path / "model")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace(f"seq_len: {MAX_LEN}", "seq_len: 100000"))
    mine, theirs = pty.openpty()
    settings = ["--max-tokens", "99000", "--temperature", "0", "--device", "cpu"]  # it repeats itself for ever
    command = [sys.executable, "-m", "internevo_engine", "chat", str(folder), *settings]
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(command, **streams, cwd=ROOT, start_new_session=True) as process:
        os.close(theirs)
        assert b"it answers" in read_until(mine, b"> ")
        os.write(mine, b"hello\n")
        assert len(os.read(mine, 7) + os.read(mine, 50)) > 7
        process.send_signal(signal.SIGINT)
        read_until(mine, b" ...\r\n> ")
        process.send_signal(signal.SIGINT)
        read_until(mine, b"\r\n> ")
        os.write(mine, b"/quit\n")
        assert process.wait(300) == 0
    os.close(mine)


def read_until(terminal: int, mark: bytes) -> bytes:
    """What the program shows, up to `mark`; a program that ends earlier, or says nothing for a minute, is an error."""
    shown = b""
    while not shown.endswith(mark):
        assert select.select([terminal], [], [], 60)[0], shown
        shown += os.read(terminal, 1)
    return shown
