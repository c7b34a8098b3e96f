"""The simulator against the executor: the same numbers start in the same order on every lane, and what the simulated
Program says it sends over a level is what leaves, on real ranks over gloo."""

from pathlib import Path

import pytest

from internevo_engine.program import LANES
from internevo_engine.runtime.executor import Executor
from internevo_engine.runtime.launch import Place
from internevo_engine.schedule.costs import MODELLED
from internevo_engine.schedule.report import bytes_sent
from internevo_engine.schedule.simulate import Simulator
from tests.ranks import run_ranks
from tests.runtime.collectives import recorded
from tests.runtime.linear_step import OPTIM, Plan, batches_of, bind, graph_spec, program

Order = dict[str, list[int]]
PLANS = {
    2: [Plan((1, 1, 1)), Plan((1, 1, 2), mode="fast"), Plan((2, 2, 2))],
    4: [Plan((1, 1, 2), mode="fast"), Plan((1, 2, 4)), Plan((4, 4, 4), mode="fast")],
}


def order_of(plan: Plan, world: int, starts: list[int]) -> Order:
    """Numbers of the instructions of each lane, by start."""
    instructions = list(enumerate(program(plan, world).instructions))
    return {
        lane: sorted((number for number, each in instructions if each.lane == lane), key=starts.__getitem__)
        for lane in LANES
    }


def executed(place: Place, plans: list[Plan]) -> list[tuple[Order, dict[str, int]]]:
    """What a step of each plan did on this rank: order of starts, bytes sent over each level."""
    found = []
    for plan in plans:
        step = program(plan, place.world)
        bindings = bind(step, plan, place)
        engine = Executor(step, bindings, OPTIM)
        with recorded() as recorder:
            engine.step(batches_of(0, place.rank, place.world, plan), lr=0.1, step=1)
        sent = dict.fromkeys([level.name for level in step.levels], 0)
        for (_, level), group in bindings.groups.items():
            sent[level] = sent.get(level, 0) + sum(each.sent for each in recorder.by_group[group])
        found.append((order_of(plan, place.world, engine.trace[:, 0].tolist()), sent))
        engine.close()
    return found


@pytest.mark.parametrize("world", [2, 4])
def test_start_order_and_bytes_are_the_executors(tmp_path: Path, world: int) -> None:
    plans = PLANS[world]
    simulated = []
    for plan in plans:
        step = program(plan, world)
        spans = Simulator(step, graph_spec(plan.dtype)).run(MODELLED["cpu"])
        simulated.append((order_of(plan, world, [span.start for span in spans]), bytes_sent(step)))
    for of_rank in run_ranks(executed, world, tmp_path, plans):
        assert of_rank == simulated
