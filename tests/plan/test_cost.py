"""Prices of computing and sending, against figures that others measured and against arithmetic by hand."""

import math
from dataclasses import replace

import pytest

from internevo_engine.plan.cluster import PRESETS
from internevo_engine.plan.cost import Calibration, Group, expected_maximum, level_rate, matmul_s, ring_s
from internevo_engine.program import Level

A100 = PRESETS["a100-80g-4x100g"]
CALIBRATION = Calibration()


@pytest.mark.parametrize(("count", "value"), [(1, 0.0), (2, 1 / math.sqrt(math.pi)), (8, 1.4236), (1000, 3.2414)])
def test_the_slowest_of_many_is_an_exact_order_statistic(count: int, value: float) -> None:
    assert expected_maximum(count) == pytest.approx(value, abs=1e-3)


def test_an_all_reduce_inside_a_node_reaches_the_bus_bandwidth_of_nccl_tests() -> None:
    num_bytes = 16 * 2**30
    seconds = ring_s(num_bytes, 2, Group(8, 8), A100, CALIBRATION)
    bus_bandwidth = 2 * 7 / 8 * num_bytes / seconds
    assert bus_bandwidth / 1e9 == pytest.approx(234.9, rel=0.01)


def test_a_small_collective_is_all_latency() -> None:
    hops = CALIBRATION.hop_factor * 2 * (3 * 14 + 28 * 3.4) * 1e-6
    assert ring_s(32, 2, Group(32, 8), A100, CALIBRATION) == pytest.approx(hops + 20e-6, rel=0.01)


def test_groups_that_share_network_cards_take_turns() -> None:
    one, two = (ring_s(1e10, 1, Group(16, 8, sharing), A100, CALIBRATION) for sharing in (1, 2))
    assert two == pytest.approx(2 * one, rel=0.01)


def test_both_ways_of_counting_hops_agree_on_nodes_of_eight() -> None:
    ranks, nodes = (replace(CALIBRATION, hops=hops).hops_s(7, 1, A100) for hops in ("ranks", "nodes"))
    assert ranks == pytest.approx(nodes, rel=0.01)


def test_each_doubling_of_nodes_costs_as_much() -> None:
    longer = [CALIBRATION.net_efficiency / CALIBRATION.net_share(nodes) - 1 for nodes in (2, 4, 128)]
    assert longer == pytest.approx([0, CALIBRATION.congestion, 6 * CALIBRATION.congestion])


@pytest.mark.parametrize(("num_bytes", "is_ring"), [(1e5, False), (1e10, True)])
def test_between_many_nodes_small_buffers_take_a_tree_and_large_ones_a_ring(num_bytes: float, is_ring: bool) -> None:
    level = Level("R", 1, 128, 8, "far")
    latency, rate = level_rate(level, 2, num_bytes, A100, CALIBRATION)
    assert (rate > 0.9 * A100.far_gb_per_s_of_rank * 1e9 * CALIBRATION.net_share(128)) is is_ring
    assert (latency > 2 * 100 * 14e-6) is is_ring


def test_matrix_products_of_few_tokens_are_less_efficient() -> None:
    half = CALIBRATION.half_tokens
    per_token = [matmul_s(1e12 * tokens, tokens, A100, CALIBRATION) / tokens for tokens in (half, 1000 * half)]
    assert per_token[0] == pytest.approx(2 * per_token[1], rel=0.01)
