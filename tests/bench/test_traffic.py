"""What a step sends, pinned for three plans on two hosts with two ranks; and that the wires carry what was planned."""

from collections import Counter
from dataclasses import dataclass

import pytest

from bench.job import Contestant, Job, run_processes
from bench.lab.network import missing
from bench.peers.engine import link_bytes
from bench.workload import Settings
from internevo_engine.plan.topology import Topology
from internevo_engine.schedule.show import program_of

LACK = missing()
NUMEL, LAYER_NUMEL = 9_014_528, 803_328
"""Parameters of the 9M model and of one of its layers; embedding, six layers and head are a bucket each."""
HALF = 4 * NUMEL // 2
"""Bytes in fp32."""
AGAIN = 4 * 5 * LAYER_NUMEL // 2
"""Half of the layers that backward gathers again: the last layer and the head are still there, and the embedding's
backward reads no weight."""


@dataclass(frozen=True)
class Traffic:
    near: int
    """Bytes that each rank sends."""
    far: int
    reduces: int
    """Collectives of a step, over all levels."""
    gathers: int
    copies: int
    """Passes over a bucket's gradients that neither send nor update: pack and accumulate."""


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        # everything everywhere: every gradient all-reduced inside the host, then between hosts
        pytest.param((1, 1, 1), Traffic(2 * HALF, 2 * HALF, 16, 0, 8), id="1/1/1"),
        # optimizer states over a host: reduce-scatter and refresh inside it, half all-reduced between hosts
        pytest.param((1, 1, 2), Traffic(2 * HALF, HALF, 16, 8, 8), id="1/1/2"),
        # everything over the world: two gathers of most layers and one reduce-scatter, on both levels
        pytest.param((4, 4, 4), Traffic(2 * HALF + AGAIN, HALF + AGAIN // 2, 16, 26, 16), id="4/4/4"),
    ],
)
def test_a_plan_sends_what_its_group_sizes_say(zero: tuple[int, int, int], expected: Traffic):
    program = program_of(Settings(zero=zero).config, Topology(4, 2, "cpu"))
    count = Counter(each.kind for each in program.instructions if each.level != "all")
    gathers, copies = count["gather"] + count["refresh"], count["pack"] + count["accumulate"]
    assert Traffic(**link_bytes(program), reduces=count["reduce"], gathers=gathers, copies=copies) == expected


@pytest.mark.slow
@pytest.mark.skipif(LACK is not None, reason=f"no lab here: {LACK}")
def test_the_interfaces_of_a_host_count_what_was_planned():
    settings = Settings(size="1M", compile="eager", warm_up=1, steps=3, zero=(1, 1, 2))
    measured = run_processes(Contestant("engine", "engine", settings), Job(2, hosts=2, rate="1gbit")).measured
    planned = measured.planned_bytes["far"] * 2
    assert planned <= measured.sent_bytes["eth0"] <= 1.05 * planned
