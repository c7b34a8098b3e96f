"""What all suites share: options, the way a job is run here, and the hand-over to pytest-benchmark."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.compare import SAME_LOSS, Comparison, Replay, Scenario, compare
from bench.job import Contestant, Job, Outcome, Run, run_here, run_processes
from bench.lab.network import missing
from bench.peers.measure import joined_rank
from bench.peers.peer import Rank
from bench.workload import Settings
from internevo_engine.runtime.launch import find_place

Replayed = Callable[..., None]


def _lacks_lab(config: pytest.Config) -> str | None:
    lack = "a launcher started this process" if find_place(None, os.environ) else missing()
    return lack and f"no emulated cluster here: {lack}"


def _is_rank(config: pytest.Config) -> str | None:
    return "starts processes of its own; run it without torchrun or srun" if find_place(None, os.environ) else None


def _is_short(config: pytest.Config) -> str | None:
    return None if config.getoption("--long") else "takes minutes; add --long"


MARKS = {
    "lab": ("needs the emulated cluster: Linux, root, ip, tc", _lacks_lab),
    "own_processes": ("can't be one of many ranks", _is_rank),
    "long": ("takes minutes", _is_short),
}
"""What a row may need: in words, and a function that says why it isn't there."""


def pytest_configure(config: pytest.Config) -> None:
    for name, (text, _) in MARKS.items():
        config.addinivalue_line("markers", f"{name}: {text}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, (_, lacking) in MARKS.items():
        if item.get_closest_marker(name) and (reason := lacking(item.config)):
            pytest.skip(reason)


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, object]) -> None:
    """The report names the command."""
    output_json["command"] = shlex.join(["python", "-m", "pytest", *config.invocation_params.args])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--repeats", type=int, default=5, help="processes started of every contestant, interleaved")
    parser.addoption("--long", action="store_true", help="also the rows that take minutes each")
    parser.addoption("--deepspeed-python", metavar="PATH", help="interpreter that has deepspeed, for its rows")


@pytest.fixture(scope="session")
def rank() -> Iterator[Rank | None]:
    """Who this process is, if torchrun or srun started it; the suites share one process group."""
    place = find_place(None, os.environ)
    if place is None:
        yield None
        return
    with joined_rank(Settings(), place) as rank:
        yield rank


@pytest.fixture(scope="session")
def deepspeed_python(request: pytest.FixtureRequest) -> str | None:
    return request.config.getoption("--deepspeed-python") or (sys.executable if find_spec("deepspeed") else None)


@pytest.fixture(scope="session")
def run(rank: Rank | None, deepspeed_python: str | None) -> Run:
    """How a contestant is run."""
    if rank is not None:
        return lambda contestant, job: run_here(contestant, rank)

    def started(contestant: Contestant, job: Job) -> Outcome:
        if contestant.peer.startswith("deepspeed") and deepspeed_python:
            return run_processes(contestant, job, deepspeed_python)
        return run_processes(contestant, job)

    return started


@pytest.fixture(scope="session")
def comparison(
    request: pytest.FixtureRequest, run: Run, deepspeed_python: str | None
) -> Callable[[Scenario], Comparison]:
    """Runs a scenario when it is first asked for."""
    done: dict[str, Comparison] = {}

    def once(scenario: Scenario) -> Comparison:
        if scenario.name not in done:
            able = [c for c in scenario.contestants if deepspeed_python or not c.peer.startswith("deepspeed")]
            done[scenario.name] = compare(scenario, run, request.config.option.repeats, able)
        return done[scenario.name]

    return once


@pytest.fixture
def record(comparison: Callable[[Scenario], Comparison], replay: Replayed) -> Callable[[Scenario, str], None]:
    """record(scenario, label): a row of a comparison, if it counts."""

    def one(scenario: Scenario, label: str) -> None:
        compared = comparison(scenario)
        for name in ("engine", label):
            if name in compared.failed:
                raise compared.failed[name]
        if label not in compared.rounds:
            pytest.skip("DeepSpeed is not installed; --deepspeed-python says where it is")
        assert compared.loss_difference(label) <= SAME_LOSS, "trains something else, so its time does not count"
        replay(compared.seconds(label), **compared.facts(label))

    return one


@pytest.fixture
def replay(request: pytest.FixtureRequest) -> Replayed:
    """replay(seconds, **extra_info): a row whose rounds took so long."""
    clock = Replay()
    request.node.add_marker(pytest.mark.benchmark(timer=clock))
    benchmark: BenchmarkFixture = request.getfixturevalue("benchmark")

    def record(seconds: Sequence[float], **extra_info: object) -> None:
        benchmark.extra_info.update(extra_info)
        benchmark.pedantic(clock.play(seconds), rounds=len(seconds))

    return record
