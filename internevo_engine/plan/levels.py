"""plan: group sizes become levels, the digits of a rank. Hands on a tuple of `Level`; schedule and runtime build every
collective from it.

With group sizes p | g | os | W a rank is a mixed-radix number, digit 0 fastest. The digits make up p (state P), then
g / p (G), os / g (OS) and W / os (R, replicas). Level k of size s cuts a slice of a bucket into s equal slices, and a
rank owns the one numbered by its digit; so the P slice holds the G slice, which holds the OS slice, and every
collective is a plain rank-ordered one over one level.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod

from internevo_engine.errors import PlanError
from internevo_engine.program import Level, Link, State
from internevo_engine.units import divisors, one_of

KEYS: Mapping[State, str] = {"P": "zero.param", "G": "zero.grad", "OS": "zero.optim", "R": "world"}
"""What sets the group size of each state; in the order of the digits."""
STATES = tuple(KEYS)


def levels(param: int, grad: int, optim: int, world: int, ranks_per_host: int) -> tuple[Level, ...]:
    """The digits of a rank for group sizes param | grad | optim of `world` ranks, hosts filled one after the other.

    A digit that crosses the border of a host is two levels, the near one first. levels(1, 1, 8, 16, 8) is an
    OS level of 8 inside each host and an R level of 2 between them.

    Raises:
        PlanError: a size does not divide the next, or a group fits hosts neither evenly nor as a whole.
    """
    sizes = _digits(param, grad, optim, world)
    result: list[Level] = []
    stride = 1
    for state, size in zip(STATES, sizes, strict=True):
        near = _near_part(state, size, stride, ranks_per_host)
        parts: tuple[tuple[int, Link], ...] = ((near, "near"), (size // near, "far"))
        for part, link in parts:
            if part > 1:
                result.append(Level(state, len(result), part, stride, link))
                stride *= part
    return tuple(result)


def _digits(param: int, grad: int, optim: int, world: int) -> list[int]:
    for (key, size), (next_key, next_size) in pairwise(zip(KEYS.values(), (param, grad, optim, world), strict=True)):
        if next_size % size:
            allowed = one_of(divisors(next_size))
            raise PlanError(f"{key}={size} does not divide {next_key}={next_size}; use {allowed}")
    return [param, grad // param, optim // grad, world // optim]


def _near_part(state: State, size: int, stride: int, ranks_per_host: int) -> int:
    """How much of a digit stays inside a host."""
    if stride >= ranks_per_host:
        near, fits = 1, stride % ranks_per_host == 0
    else:
        near = min(size, ranks_per_host // stride)
        fits = ranks_per_host % stride == 0 and size % near == 0 and ranks_per_host % (stride * near) == 0
    if not fits:
        raise PlanError(
            f"{KEYS[state]}={stride * size} does not fit hosts of {ranks_per_host} ranks; "
            f"use a size that divides {ranks_per_host} or is a multiple of it"
        )
    return near


def owned_slice(rank: int, levels: Sequence[Level], state: State, numel: int) -> tuple[int, int]:
    """(offset, length), in elements, of what a rank holds of a bucket of `numel` in the given state.

    Raises:
        PlanError: the bucket can't be cut evenly.
    """
    return cut(rank, levels_of(levels, STATES[: STATES.index(state) + 1]), numel)


def levels_of(levels: Sequence[Level], states: Sequence[State]) -> tuple[Level, ...]:
    """The levels along which these states are cut; R cuts nothing."""
    return tuple(level for level in levels if level.state in states and level.state != "R")


def is_first_replica(rank: int, levels: Sequence[Level]) -> bool:
    """Of the ranks that hold the same slices, the one that speaks for all of them."""
    return all(level.digit(rank) == 0 for level in levels if level.state == "R")


def cut(rank: int, levels: Sequence[Level], numel: int) -> tuple[int, int]:
    """(offset, length) of the slice that is left to a rank after cutting `numel` elements along each of the levels.

    Raises:
        PlanError: they can't be cut evenly.
    """
    shards = prod(level.size for level in levels)
    if numel % shards:
        raise PlanError(f"a bucket of {numel} elements can't be cut into {shards} equal slices; pad it to a multiple")
    offset, length = 0, numel
    for level in levels:
        length //= level.size
        offset += length * level.digit(rank)
    return offset, length
