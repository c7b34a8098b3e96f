"""Text comes as it is certain: whole characters, nothing of a stop string, and every space."""

from pathlib import Path

import pytest

from internevo_engine.serve.load import load_model
from internevo_engine.serve.stream import TextStream
from tests.serve.models import write_hf, write_speaker

TEXTS = [
    "plain words, and  two spaces",
    "天地玄黄 and a 🐈‍⬛, é, then the end",
    "  def f(x):\n\treturn 'ß'\n",
    "\U0001f9ff",
]


def letters(tokens) -> str:
    """A vocabulary whose tokens are characters."""
    return "".join(map(chr, tokens))


def pieces(text: str, **settings) -> list[str]:
    stream = TextStream(letters, **settings)
    found = [stream.push(ord(letter)) for letter in text]
    return [*found, stream.finish()]


@pytest.mark.parametrize("write", [write_speaker, write_hf])
@pytest.mark.parametrize("text", TEXTS)
def test_every_character_comes_whole(tmp_path: Path, write, text: str) -> None:
    vocabulary = load_model(write(tmp_path / "model"), "cpu").vocabulary
    tokens = vocabulary.begin(text)[1:]
    stream = TextStream(vocabulary.decode)
    found = [*(stream.push(token) for token in tokens), stream.finish()]
    assert "".join(found) == text
    assert not any("\ufffd" in piece for piece in found)
    assert ("" in found[:-1]) != text.isascii()  # some character was several tokens


def test_a_character_that_is_cut_in_half_is_left_out(tmp_path: Path) -> None:
    vocabulary = load_model(write_speaker(tmp_path / "model"), "cpu").vocabulary
    tokens = vocabulary.begin("so 🐈")[1:]
    stream = TextStream(vocabulary.decode)
    found = [*(stream.push(token) for token in tokens[:-1]), stream.finish()]
    assert "".join(found) == "so "


def test_bytes_that_are_no_character_do_not_hold_the_text_up(tmp_path: Path) -> None:
    vocabulary = load_model(write_speaker(tmp_path / "model"), "cpu").vocabulary
    half, rest = vocabulary.begin("🐈")[1:2], vocabulary.begin("and on and on")[1:]
    stream = TextStream(vocabulary.decode)
    found = [stream.push(token) for token in half * 9 + rest]
    assert "".join(found) + stream.finish() == vocabulary.decode(half * 9 + rest)
    assert "".join(found[:8])


@pytest.mark.parametrize(
    ("text", "stop", "told"),
    [
        ("one END two", ["END"], "one "),
        ("one EN two E", ["END"], "one EN two E"),
        ("EEND", ["END"], "E"),
        ("abcabd!", ["abd"], "abc"),
        ("a\n\nUser: b", ["User:", "\n\n"], "a"),
    ],
)
def test_nothing_of_a_stop_string_is_told(text: str, stop: list[str], told: str) -> None:
    found = pieces(text, stop=stop)
    assert "".join(found).startswith(told)
    stream, shown = TextStream(letters, stop=stop), ""
    for letter in text:
        shown += stream.push(ord(letter))
        assert told.startswith(shown)
        if stream.is_stopped:
            break
    else:
        shown += stream.finish()
    assert shown == told
    assert stream.is_stopped == any(word in text for word in stop)


def test_text_that_cannot_begin_a_stop_string_is_told_at_once() -> None:
    assert pieces("abcE", stop=["END"]) == ["a", "b", "c", "", "E"]


def test_a_continued_text_keeps_the_space_in_front(tmp_path: Path) -> None:
    vocabulary = load_model(write_speaker(tmp_path / "model"), "cpu").vocabulary
    prompt, word = vocabulary.begin("Once upon a"), vocabulary.begin("Once upon a time")
    stream = TextStream(vocabulary.decode, context=prompt[-8:])
    found = [stream.push(token) for token in word[len(prompt) :]]
    assert word[: len(prompt)] == prompt
    assert "".join(found) == " time"
