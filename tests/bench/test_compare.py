"""The arithmetic of comparisons, on made-up measurements; and which rows a machine gets."""

import subprocess
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from bench.compare import Replay, Scenario, compare
from bench.job import Contestant, Job, Outcome, run_processes, worlds
from bench.peers.__main__ import options
from bench.peers.measure import Measured, measure
from bench.peers.peer import Rank
from bench.report import table
from bench.workload import Settings
from internevo_engine.runtime.launch import Place
from internevo_engine.runtime.machine import Gpu, Machine
from tests.ranks import run_ranks

LINE_RATE = 50e6
SCENARIO = Scenario("made up", Job(2, hosts=2, rate="400mbit"), Settings(), ("ddp",), compute=("local",))
SECONDS = {"engine": [1.0, 2.0, 1.0], "ddp": [2.0, 3.0, 1.5], "local": [0.5, 1.5, 0.5]}
FAR_BYTES = 20_000_000
"""Of each of a host's two ranks: 0.8 s at the line rate."""


def outcome(label: str, seconds: float, losses: list[float]) -> Outcome:
    planned = {"far": FAR_BYTES} if label == "engine" else {}
    numbers = {"parameters": 1, "rank_tokens": 1, "rank_flops": 1, "first_step_s": 0.0}
    numbers |= {"bare_rss_bytes": 1, "peak_rss_bytes": 3}
    bytes_of = {"sent_bytes": {"eth0": 0.0}, "planned_bytes": planned}
    measured = Measured(label, 4, 2, Settings(), "cpu", losses=losses, step_s=[seconds], **bytes_of, **numbers)
    return Outcome(measured, LINE_RATE)


class MadeUp:
    """Gives the next of SECONDS, and remembers who was run."""

    def __init__(self, *, failing: str = "") -> None:
        self.order: list[str] = []
        self.failing = failing

    def __call__(self, contestant: Contestant, job: Job) -> Outcome:
        self.order.append(contestant.label)
        if contestant.label == self.failing:
            raise subprocess.CalledProcessError(1, "rank")
        done = self.order.count(contestant.label)
        own = contestant.label == "local"
        return outcome(contestant.label, SECONDS[contestant.label][done - 1], [9.0, 7.0 if own else 8.0])


def test_rounds_are_interleaved():
    run = MadeUp()
    compare(SCENARIO, run, 3, SCENARIO.contestants)
    assert run.order == ["engine", "ddp", "local"] * 3


def test_the_limit_is_the_slower_of_computing_and_sending_in_each_round():
    compared = compare(SCENARIO, MadeUp(), 3, SCENARIO.contestants)
    assert compared.limit_s == pytest.approx([0.8, 1.5, 0.8])
    assert compared.facts("engine")["ratio_to_limit"] == 0.8  # median of 0.8, 0.75, 0.8
    assert compared.facts("ddp")["engine_speedup"] == 1.5  # median of 2, 1.5, 1.5: pairs, not medians


def test_losses_without_communication_are_compared_before_the_first_update_only():
    compared = compare(SCENARIO, MadeUp(), 1, SCENARIO.contestants)
    assert compared.loss_difference("local") == 0.0
    assert compared.loss_difference("ddp") == 0.0
    odd = replace(compared, rounds={**compared.rounds, "ddp": [outcome("ddp", 1.0, [9.0, 8.1])]})
    assert odd.loss_difference("ddp") == pytest.approx(0.0125)


def test_a_contestant_that_fails_is_left_out_and_the_others_go_on():
    run = MadeUp(failing="ddp")
    compared = compare(SCENARIO, run, 2, SCENARIO.contestants)
    assert set(compared.failed) == {"ddp"}
    assert set(compared.rounds) == {"engine", "local"}
    assert run.order.count("ddp") == 1


def test_a_replay_shows_the_seconds_of_the_ranks():
    clock = Replay()
    take = clock.play([2.0, 3.0])
    times = [clock()]
    for _ in range(2):
        take()
        times.append(clock())
    assert times == [0.0, 2.0, 5.0]


def test_ranks_are_those_of_the_launcher_or_powers_of_two_of_the_gpus_or_two_processes():
    def machine(gpus: int) -> Machine:
        return Machine(8, 1, (Gpu("H100", 1),) * gpus)

    assert worlds(machine(0), None) == [2]
    assert [worlds(machine(n), None) for n in (1, 4, 6, 8)] == [[1], [1, 2, 4], [1, 2, 4], [1, 2, 4, 8]]
    assert worlds(machine(8), Place(0, 16, 0, 8, "env://")) == [16]


def test_a_job_with_a_rate_runs_in_the_lab_and_any_other_under_torchrun():
    lab = Job(2, hosts=2, rate="1gbit").command(["echo"], Path("report"))
    assert lab[1:4] == ["-m", "bench.lab", "run"]
    assert lab[-2:] == ["--", "echo"]
    here = Job(2).command(["echo"], Path("report"))
    assert "torch.distributed.run" in here
    assert here[-1] == "echo"


def test_every_setting_reaches_the_command_line():
    other = {"layers": 1, "accumulate": 2, "zero": (1, 1, 2), "wire": "bf16", "overlap": False}
    words = options(Settings(**other))
    assert words == ["--layers", "1", "--accumulate", "2", "--zero", "1/1/2", "--wire", "bf16", "--no-overlap"]
    assert options(Settings()) == []
    assert set(other) <= {field.name for field in fields(Settings)}


def test_what_was_measured_survives_its_line_of_json():
    measured = outcome("engine", 1.0, [9.0]).measured
    assert Measured.from_json(measured.json()) == measured


def losses_of(place: Place, settings: Settings, peers: Sequence[str]) -> list[list[float]]:
    rank = Rank(settings, place, torch.device("cpu"))
    return [measure(peer, rank).losses for peer in peers]


def test_the_engine_and_torch_train_the_same_thing_on_two_ranks(tmp_path):
    settings = Settings(size="1M", layers=1, compile="eager", warm_up=1, steps=2, accumulate=2, zero=(1, 1, 2))
    engine, *others = run_ranks(losses_of, 2, tmp_path, settings, ("engine", "ddp-zero1", "fsdp2"))[0]
    assert others == [pytest.approx(engine, rel=1e-5)] * 2


@pytest.mark.slow
def test_a_job_brings_back_the_line_of_rank_0():
    settings = Settings(size="1M", layers=1, warm_up=0, steps=1)
    measured = run_processes(Contestant("local", "local", settings), Job(2)).measured
    assert (measured.world, len(measured.step_s)) == (2, 1)


def test_a_table_names_commit_machine_and_every_row():
    row = {
        "fullname": "bench/test_peers.py::test_step[2 ranks: ddp]",
        "param": "2 ranks: ddp",
        "stats": {"median": 0.5, "rounds": 5},
        "extra_info": {"ratio_to_limit": 0.75, "row": "ddp"},
    }
    run = {
        "command": "python -m pytest bench",
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "machine_info": {"cpu": {"brand_raw": "A CPU", "count": 2}, "python_version": "3.11"},
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": [row],
    }
    text = table(run, "picture.png")
    assert "# Benchmarks of 0123456789, with uncommitted changes" in text
    assert "A CPU, 2 CPUs" in text
    assert "`python -m pytest bench`" in text
    assert "| peers | 2 ranks: ddp | 0.5 | 5 | 0.75 |" in text
