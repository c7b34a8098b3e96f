"""The text of a Program: Python and C++ read and write the same bytes."""

from dataclasses import replace
from pathlib import Path

import pytest

from internevo_engine import _core
from internevo_engine.program import Program, ProgramError, parse_program
from tests.schedule.synthetic import tiny_program

GROUPS = ((1, 1, 1, 1), (1, 1, 4, 4), (2, 2, 4, 4), (1, 2, 2, 4))


@pytest.mark.parametrize("groups", GROUPS)
def test_text_reads_back_to_the_equal_program(groups: tuple[int, int, int, int]) -> None:
    program = tiny_program(groups)
    again = parse_program(program.text)
    assert again == program
    assert again.hash == program.hash


@pytest.mark.parametrize("groups", GROUPS)
def test_python_and_cpp_write_the_same_text(groups: tuple[int, int, int, int]) -> None:
    text = tiny_program(groups).text
    assert _core.reprint_program(text) == text


def test_long_names_and_numbers_keep_the_text_equal() -> None:
    program = tiny_program((1, 1, 2, 2))
    first = replace(program.instructions[0], what="a.call.with.a.long.name", cost=10**15, bytes=10**12, after=(7, 8))
    wide = replace(program, instructions=(first, *program.instructions[1:]))
    assert _core.reprint_program(wide.text) == wide.text
    assert parse_program(wide.text) == wide


def test_every_field_changes_the_hash() -> None:
    program = tiny_program((1, 2, 4, 4))
    changes: list[Program] = [
        replace(program, world=8),
        replace(program, mode="ordered"),
        replace(program, window_bytes=12),
        replace(program, levels=program.levels[:1]),
        replace(program, buckets=program.buckets[1:]),
        replace(program, calls=program.calls[1:]),
        replace(program, values=program.values[1:]),
        replace(program, buffers=program.buffers[1:]),
        replace(program, instructions=program.instructions[:-1]),
    ]
    assert len({changed.hash for changed in (program, *changes)}) == len(changes) + 1


@pytest.mark.parametrize(
    ("line", "edited", "message"),
    [
        (0, "program v2 world=2", "line 1: "),
        (1, "level Q0 size=2 stride=1 link=near", "line 2: 'Q' is"),
        (1, "level OS0 size=two stride=1 link=near", "line 2: 'two' is not a whole number"),
        (1, "level OS0 stride=1 link=near", "line 2: size= is missing"),
        (-1, "7 compute compute x m=- level=- bytes=0 cost=0 reads=- writes=- after=-", "instruction"),
    ],
)
def test_both_sides_name_the_line_they_can_not_read(line: int, edited: str, message: str) -> None:
    lines = tiny_program((1, 1, 2, 2)).text.splitlines()
    lines[line] = edited
    text = "\n".join(lines)
    with pytest.raises(ProgramError, match=message):
        parse_program(text)
    with pytest.raises(ValueError, match=message):
        _core.reprint_program(text)


def test_json_holds_what_the_text_holds() -> None:
    program = tiny_program((1, 1, 2, 2))
    assert f'"what": "{program.instructions[0].what}"' in program.json()


def test_kinds_and_lanes_are_written_once_in_each_language() -> None:
    header = (Path(__file__).parents[2] / "csrc/core/program.cpp").read_text()
    from internevo_engine.program import KINDS, LANES

    words = header.replace("\n", " ").split("kLanes = {")[1].split("}")[0]
    assert [word.strip(' "') for word in words.split(",")] == list(LANES)
    words = header.replace("\n", " ").split("kKinds = {")[1].split("}")[0]
    assert [word.strip(' "') for word in words.split(",")] == list(KINDS)
