"""A rank that fails ends all ranks at once, its own message comes first, and what may mend it is tried again."""

import subprocess
import sys
from pathlib import Path

import pytest

from internevo_engine.runtime.supervise import Budget


def supervised(how: str, folder: Path, restarts: int = 0) -> tuple[int, list[str]]:
    """Exit code, and the error lines, of three ranks of which rank 1 fails."""
    code = (
        "import sys; from pathlib import Path; from internevo_engine.runtime.supervise import supervise; "
        f"sys.exit(supervise([sys.executable, '-m', 'tests.failing_rank', {how!r}], 3, "
        f"restarts={restarts}, newest=lambda: 0, run=Path({str(folder)!r})))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    return result.returncode, [line for line in result.stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize(
    ("how", "code", "first", "then"),
    [
        ("raise", 3, "rank 1: shard 7 of the corpus is unreadable", "not started again: code 3 would come again"),
        ("bug", 70, "rank 1: this is a bug in internevo_engine", "no new checkpoint after launch.restarts=0 restarts"),
    ],
)
def test_the_culprit_speaks_first_and_its_code_counts(tmp_path: Path, how: str, code: int, first: str, then: str):
    found, lines = supervised(how, tmp_path)
    assert found == code
    assert lines[0].startswith(f"error: {first}")
    assert all("another rank ended" in line or "rank 1 has ended" in line for line in lines[1:-1])
    assert lines[-1].startswith(f"error: attempt 1 ended: {first}")
    assert lines[-1].endswith(then)


def test_a_crash_loop_ends_after_the_budget_with_the_code_of_its_cause(tmp_path: Path):
    found, lines = supervised("abort", tmp_path, restarts=1)
    ends = [line for line in lines if line.startswith("error: attempt")]
    assert found == 70
    assert ends == [
        "error: attempt 1 ended: rank 1 was ended by SIGABRT; starting again from step 0; 0 restarts left after that",
        "error: attempt 2 ended: rank 1 was ended by SIGABRT; not started again: no new checkpoint after "
        "launch.restarts=1 restarts",
    ]


def test_every_new_checkpoint_gives_the_whole_budget_back():
    steps = [0]
    budget = Budget(2, lambda: steps[-1])
    assert [budget.refusal(6), budget.refusal(7)] == ["", ""]
    assert budget.refusal(6) == "no new checkpoint after launch.restarts=2 restarts"
    steps.append(40)
    assert [budget.refusal(70), budget.refusal(6)] == ["", ""]
    assert budget.refusal(6) == "no new checkpoint after launch.restarts=2 restarts"


@pytest.mark.parametrize("code", [2, 3, 4, 5, 8, 9, 10, 12])
def test_what_would_come_again_is_not_started_again(code: int):
    assert Budget(3, lambda: 0).refusal(code) == f"code {code} would come again"
