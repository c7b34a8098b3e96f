"""A rank that is killed, stopped or stuck is named, and the run comes back with the same bits and leaves nothing."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from internevo_engine.__main__ import main as verb
from internevo_engine.loop.fingerprint import first_difference
from tests.conftest import Tiny, make_tiny
from tests.supervised import COMMAND, ROOT, Supervised, children, is_running, listening

STEPS = 40
ALL_EQUAL = f"{STEPS} steps are equal, bit for bit"
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


@pytest.fixture
def runs() -> Iterator[list[Supervised]]:
    """Whatever a test starts here has ended when it ends."""
    started: list[Supervised] = []
    yield started
    for run in started:
        run.process.kill()
        run.process.communicate()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the same ranks, undisturbed."""
    tiny = make_tiny(tmp_path_factory.mktemp("straight"))
    assert Supervised(tiny, f"run.steps={STEPS}").end()[0] == 0
    return tiny.run


def started(runs: list[Supervised], tiny: Tiny, *options: str, python_path: Path = ROOT) -> Supervised:
    runs.append(Supervised(tiny, f"run.steps={STEPS}", *options, python_path=python_path))
    return runs[-1]


@pytest.mark.parametrize(("rank", "every"), [(1, 5), (0, 0)])
def test_a_killed_rank_is_named_and_the_run_comes_back_with_the_same_bits(
    tiny: Tiny, straight: Path, runs: list[Supervised], rank: int, every: int
):
    run = started(runs, tiny, f"checkpoint.every={every}")
    run.until_step(7)
    ports = {address for pid in run.pids for address in listening(pid)}
    run.hurt(rank, signal.SIGKILL)
    code, errors = run.end()
    assert code == 0, errors
    assert f"error: attempt 1 ended: rank {rank} was ended by SIGKILL; starting again from step " in errors
    assert ("from step 0;" in errors) == (every == 0)
    assert (run.failure["code"], run.failure["culprit"]) == (6, rank)
    assert first_difference(straight, tiny.run) == ALL_EQUAL
    assert not list(run.temporary.iterdir())
    assert not list(tiny.run.parent.glob("tiny.*"))
    assert ports <= LOOPBACK


def test_a_stopped_rank_is_named_within_3_s_and_the_run_comes_back(
    tiny: Tiny, straight: Path, runs: list[Supervised], capsys
):
    run = started(runs, tiny, "checkpoint.every=5")
    run.until_step(7)
    pids = run.pids
    run.hurt(1, signal.SIGSTOP)
    code, errors = run.end()
    assert code == 0, errors
    failure = run.failure
    assert (failure["code"], failure["culprit"]) == (7, 1)
    assert failure["cause"].startswith("rank 0: rank 1 has been silent for ")
    assert float(failure["cause"].split(" for ")[1].split(" s:")[0]) < 3
    assert not any(map(is_running, pids))
    assert first_difference(straight, tiny.run) == ALL_EQUAL
    assert verb(["show", "failure", str(tiny.run)]) == 0
    assert "rank 1 had to be ended" in capsys.readouterr().out
    last = failure["ranks"][0]["instructions"][-1]
    assert last["text"].startswith(f"{last['number']} ")
    assert " after=" in last["text"]


def test_a_rank_that_keeps_the_gil_is_named_with_its_stack(
    tiny: Tiny, runs: list[Supervised], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tiny.folder)
    run = started(runs, tiny, "launch.restarts=0", python_path=ROOT / "tests/holds_gil")
    run.until_step(7)
    Path("HOLD").touch()
    code, errors = run.end()
    assert code == 7, errors
    assert run.failure["culprit"] == 1
    assert "rank 1 does not run Python: a thread of it has held the GIL for " in run.failure["cause"]
    assert "in hold_the_gil" in run.failure["ranks"][1]["words"]


def test_the_ranks_die_with_their_parent(tiny: Tiny, runs: list[Supervised]):
    run = started(runs, tiny)
    run.until_step(2)
    pids = run.pids
    assert len(pids) == 2
    run.process.kill()
    deadline = time.monotonic() + 60
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_running, pids))
    assert not list(run.temporary.iterdir())


def test_a_run_that_is_asked_to_stop_is_not_started_again(tiny: Tiny, runs: list[Supervised]):
    run = started(runs, tiny)
    while not children(run.process.pid):
        time.sleep(0.01)
    os.kill(run.process.pid, signal.SIGTERM)  # before there are ranks: it just ends
    code, errors = run.end()
    assert code == 6, errors
    assert errors.rstrip().endswith("was ended by SIGTERM; not started again: it was asked to stop")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_by_another_host(tiny: Tiny, stopped: int):
    """Two ranks, each on a host of its own as Slurm tells it; rank 0 holds the store."""
    port = str(free_port())
    job = {"SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "a,b", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    options = [tiny.config, "run.steps=100000"]
    ranks = [
        subprocess.Popen(
            [*COMMAND, *options],
            env=os.environ | job | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": "0", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert ranks[0].stdout
    assert any(line.startswith("step      9/") for line in ranks[0].stdout)
    ranks[stopped].send_signal(signal.SIGSTOP)
    _, errors = ranks[1 - stopped].communicate(timeout=120)
    ranks[stopped].kill()
    ranks[stopped].communicate()
    assert ranks[1 - stopped].returncode == 7, errors
    assert f"error: rank {1 - stopped}: rank {stopped} has been silent for " in errors
