"""Programs as reviewed text: a change of schedule shows as a diff of tests/schedule/golden.

After a change that is meant: IE_UPDATE_GOLDEN=1 python -m pytest tests/schedule/test_golden.py, and read the diff.
"""

import os
from pathlib import Path

import pytest

from internevo_engine.program import Program
from tests.schedule.synthetic import tiny_program

GOLDEN = Path(__file__).parent / "golden"


def small(groups: tuple[int, int, int, int], **options: object) -> Program:
    return tiny_program(groups, layers=1, **{"micro_batches": 1, **options})  # pyright: ignore[reportArgumentType]


PROGRAMS = {
    "1_1_1_of_1": small((1, 1, 1, 1), micro_batches=2),
    "1_1_1_of_2": small((1, 1, 1, 2)),
    "1_1_W": small((1, 1, 2, 2), micro_batches=2),
    "1_W_W": small((1, 2, 2, 2), micro_batches=2),
    "W_W_W": small((2, 2, 2, 2), micro_batches=2),
    "1_2_4": small((1, 2, 4, 4)),
    "1_2_4_no_overlap": small((1, 2, 4, 4), overlap=False),
    "1_2_4_ordered": small((1, 2, 4, 4), micro_batches=2, mode="ordered"),
    "1_1_W_invariant": small((1, 1, 2, 2), micro_batches=4, mode="invariant"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_is_the_reviewed_one(name: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if "IE_UPDATE_GOLDEN" in os.environ:
        path.write_text(PROGRAMS[name].text)
    assert path.read_text() == PROGRAMS[name].text
