"""A rank that fails ends all ranks within seconds, and its own message comes first."""

import subprocess
import sys
import time

import pytest


def supervised(how: str, nproc: int = 3) -> tuple[int, list[str], float]:
    code = (
        "import sys; from internevo_engine.runtime.supervise import supervise; "
        f"sys.exit(supervise([sys.executable, '-m', 'tests.failing_rank', {how!r}], {nproc}))"
    )
    started = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return result.returncode, lines, time.perf_counter() - started


@pytest.mark.parametrize(
    ("how", "code", "first"),
    [
        ("raise", 3, "error: rank 1: shard 7 of the corpus is unreadable"),
        ("bug", 70, "error: rank 1: this is a bug in internevo_engine"),
    ],
)
def test_the_culprit_speaks_first_and_its_code_counts(how, code, first):
    found, lines, seconds = supervised(how)
    assert found == code
    assert lines[0].startswith(first)
    assert all("another rank ended or the network broke" in line for line in lines[1:])
    assert seconds < 30


def test_a_killed_rank_is_named():
    found, lines, seconds = supervised("kill")
    assert found == 6
    assert any("rank 1 was ended by SIGKILL" in line for line in lines)
    assert seconds < 30
