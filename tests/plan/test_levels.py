"""Levels: the contract's examples, and what must hold for every legal plan."""

from itertools import pairwise

import pytest

from internevo_engine.errors import PlanError
from internevo_engine.plan.levels import STATES, levels, owned_slice
from internevo_engine.units import divisors

LEGAL = [
    (param, grad, optim, world, ranks_per_host)
    for world in (1, 2, 3, 6, 8, 16)
    for optim in divisors(world)
    for grad in divisors(optim)
    for param in divisors(grad)
    for ranks_per_host in (1, 2, 8, 16)
    if world % ranks_per_host == 0
    and all(ranks_per_host % size == 0 or size % ranks_per_host == 0 for size in (param, grad, optim))
]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((1, 1, 8, 16, 8), "OS0:8:1:near R1:2:8:far"),
        ((1, 1, 16, 16, 8), "OS0:8:1:near OS1:2:8:far"),
        ((4, 8, 16, 16, 8), "P0:4:1:near G1:2:4:near OS2:2:8:far"),
        ((1, 1, 1, 16, 8), "R0:8:1:near R1:2:8:far"),
        ((1, 3, 3, 3, 3), "G0:3:1:near"),
        ((1, 1, 1, 1, 1), ""),
        ((16, 16, 16, 32, 1), "P0:16:1:far R1:2:16:far"),
    ],
)
def test_digits_are_cut_at_states_and_hosts(sizes: tuple[int, int, int, int, int], expected: str) -> None:
    found = [f"{level.name}:{level.size}:{level.stride}:{level.link}" for level in levels(*sizes)]
    assert " ".join(found) == expected


@pytest.mark.parametrize("sizes", LEGAL)
def test_groups_partition_the_world_and_near_ones_stay_in_a_host(sizes: tuple[int, int, int, int, int]) -> None:
    *_, world, ranks_per_host = sizes
    for level in levels(*sizes):
        groups = level.groups(world)
        assert sorted(rank for group in groups for rank in group) == list(range(world))
        assert {len(group) for group in groups} == {level.size}
        hosts = [{rank // ranks_per_host for rank in group} for group in groups]
        assert {len(host) for host in hosts} == {1 if level.link == "near" else level.size}


@pytest.mark.parametrize("sizes", LEGAL)
def test_near_comes_before_far(sizes: tuple[int, int, int, int, int]) -> None:
    assert not [pair for pair in pairwise(levels(*sizes)) if (pair[0].link, pair[1].link) == ("far", "near")]


@pytest.mark.parametrize("sizes", LEGAL)
def test_slices_of_a_group_tile_the_bucket_and_nest(sizes: tuple[int, int, int, int, int]) -> None:
    *groups, world, _ = sizes
    plan, numel = levels(*sizes), 16 * sizes[2]
    for state, size in zip(STATES, groups, strict=False):
        for first in range(0, world, size):
            slices = sorted(owned_slice(rank, plan, state, numel) for rank in range(first, first + size))
            assert slices == [(place * (numel // size), numel // size) for place in range(size)]
    for rank in range(world):
        nested = [set(range(o, o + n)) for o, n in (owned_slice(rank, plan, state, numel) for state in STATES)]
        assert all(inner <= outer for outer, inner in pairwise(nested))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((6, 6, 8, 8, 8), "zero.grad=6 does not divide zero.optim=8; use 1, 2, 4 or 8"),
        ((3, 4, 8, 8, 8), "zero.param=3 does not divide zero.grad=4; use 1, 2 or 4"),
        ((1, 1, 6, 8, 8), "zero.optim=6 does not divide world=8; use 1, 2, 4 or 8"),
        (
            (1, 1, 3, 12, 4),
            "zero.optim=3 does not fit hosts of 4 ranks; use a size that divides 4 or is a multiple of it",
        ),
        ((1, 1, 6, 12, 4), "zero.optim=6 does not fit hosts of 4 ranks"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes: tuple[int, int, int, int, int], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        levels(*sizes)


def test_a_bucket_that_can_not_be_cut_is_named() -> None:
    with pytest.raises(PlanError, match="a bucket of 15 elements can't be cut into 2 equal slices"):
        owned_slice(0, levels(1, 1, 2, 2, 2), "OS", 15)
