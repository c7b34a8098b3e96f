"""A Program on paper: what must hold of every prediction, whatever the prices."""

import time
from dataclasses import replace

import pytest

from internevo_engine.plan.cluster import PRESETS
from internevo_engine.plan.cost import Calibration
from internevo_engine.plan.levels import levels
from internevo_engine.program import Program, ProgramError
from internevo_engine.schedule.cluster_costs import ClusterCosts
from internevo_engine.schedule.costs import MODELLED
from internevo_engine.schedule.graph_spec import GraphSpec
from internevo_engine.schedule.make_program import make_header, make_program
from internevo_engine.schedule.report import makespan
from internevo_engine.schedule.simulate import Simulator, busy_share, causes
from tests.schedule.synthetic import decoder_spec, plan_buckets
from tests.schedule.test_make_program import NUMELS_7B

A100 = PRESETS["a100-80g-4x100g"]


def seven_b(
    groups: tuple[int, int, int, int], *, overlap: bool = True, cluster_costs: ClusterCosts | None = None
) -> tuple[Program, GraphSpec]:
    graph = decoder_spec(NUMELS_7B, num_tokens=4096)
    header = make_header(
        graph,
        plan_buckets(NUMELS_7B, num_shards=groups[2], target_bytes=256_000_000),
        levels(*groups, ranks_per_host=8),
        world=groups[3],
        micro_batches=4,
        mode="fast",
        param_bytes=2,
        wire_bytes=4,
    )
    return make_program(header, graph, cluster_costs or MODELLED["a100"], overlap=overlap), graph


def prices(world: int, **changes: float) -> ClusterCosts:
    return ClusterCosts(A100, replace(Calibration(), **changes), 4096, 256e6, world)


@pytest.mark.parametrize("groups", [(1, 1, 8, 64), (8, 8, 8, 64), (64, 64, 64, 64)])
def test_the_step_is_no_shorter_than_links_of_ones_own_would_make_it(groups: tuple[int, int, int, int]) -> None:
    program, graph = seven_b(groups)
    assert Simulator(program, graph).step_s(MODELLED["a100"]) * 1e9 >= makespan(program)


def test_one_by_one_the_step_is_the_sum_of_its_costs() -> None:
    program, graph = seven_b((1, 1, 8, 16), overlap=False)
    assert Simulator(program, graph).step_s(MODELLED["a100"]) * 1e9 == makespan(program)


@pytest.mark.parametrize("groups", [(1, 1, 8, 64), (8, 8, 64, 64)])
def test_causes_add_up_to_the_step(groups: tuple[int, int, int, int]) -> None:
    program, graph = seven_b(groups)
    spans = Simulator(program, graph).run(prices(64))
    spent = causes(program, spans)
    assert sum(spent.values()) == max(span.end for span in spans)
    assert spent["compute"] / sum(spent.values()) == pytest.approx(busy_share(program, spans)["compute"])


def test_slower_links_between_nodes_show_as_exposed_far_transfers() -> None:
    program, graph = seven_b((1, 1, 8, 1024))
    simulator = Simulator(program, graph)
    fast, slow = (causes(program, simulator.run(prices(1024, congestion=c))) for c in (0.0, 1.0))
    assert slow["far reduce"] > fast["far reduce"]
    assert slow["compute"] >= fast["compute"]


def test_a_program_that_can_not_be_read_is_refused() -> None:
    program, graph = seven_b((1, 1, 8, 8))
    broken = replace(program, levels=())
    with pytest.raises(ProgramError):
        Simulator(broken, graph).run(MODELLED["a100"])


def test_7b_on_16384_ranks_is_simulated_in_ten_milliseconds() -> None:
    program, graph = seven_b((1, 1, 8, 16384), cluster_costs=prices(16384))
    simulator = Simulator(program, graph)
    costs = prices(16384)
    seconds = []
    for _ in range(20):
        begin = time.process_time()
        simulator.run(costs)
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 0.010
