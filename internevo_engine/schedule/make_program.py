"""schedule: a captured step, a plan's levels and buckets, and a cost table become a Program.

The deciding is done in C++ (csrc/core/scheduling.h); this is the way in and out. Hands on a checked Program.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TypedDict

from internevo_engine import _core
from internevo_engine.program import Call, FlatBucket, Level, Mode, Program, ProgramError, Value, parse_program
from internevo_engine.schedule.costs import Prices, Rate, Transfer
from internevo_engine.schedule.graph_spec import GraphSpec


def make_header(
    graph: GraphSpec,
    buckets: Sequence[_core.Bucket],
    levels: Sequence[Level],
    *,
    world: int,
    micro_batches: int,
    mode: Mode,
    param_bytes: int,
    wire_bytes: int,
    gather_ahead: int | None = 1,
) -> Program:
    """A Program without instructions: everything that is not a moment.

    Args:
        buckets: parameters as they travel; their indices are those of `graph`.
        param_bytes: bytes of one element in the compute dtype.
        wire_bytes: bytes of one gradient element as it travels.
        gather_ahead: calls whose parameters may be gathered beside those of the running call; None: all.
    """
    bucket_of = {param: number for number, bucket in enumerate(buckets) for param in bucket.params}
    gradient_of = graph.gradient_of
    calls = tuple(
        Call(
            call.name,
            _values(call.reads),
            tuple(dict.fromkeys(bucket_of[param] for param in call.params)),
            _values(call.writes),
        )
        for call in graph.calls
    )
    sizes = [bucket.numel * param_bytes for bucket in buckets]
    return Program(
        world=world,
        micro_batches=micro_batches,
        mode=mode,
        param_bytes=param_bytes,
        wire_bytes=wire_bytes,
        window_bytes=0
        if gather_ahead is None
        else gather_window([call.buckets for call in calls], sizes, gather_ahead),
        loss=_values(graph.loss),
        levels=tuple(levels),
        buckets=tuple(
            FlatBucket(
                bucket.numel,
                _values(gradient_of[param] for param in bucket.params if param in gradient_of),
                bucket.trained,
            )
            for bucket in buckets
        ),
        values=tuple(Value(f"%{value.name}", value.bytes) for value in graph.values),
        calls=calls,
    )


def gather_window(uses: Sequence[Sequence[int]], sizes: Sequence[int], ahead: int) -> int:
    """Bytes of the buckets that any `ahead + 1` neighbouring calls use, of those that use any."""
    using = [buckets for buckets in uses if buckets]
    windows = (set(chain(*using[first : first + ahead + 1])) for first in range(len(using)))
    return max((sum(sizes[bucket] for bucket in window) for window in windows), default=0)


def make_program(header: Program, graph: GraphSpec, costs: Prices, *, overlap: bool) -> Program:
    """Schedule one step. Pure: equal arguments give an equal Program on every rank.

    Args:
        header: from `make_header`.
        overlap: false: every instruction after the one before; the same arithmetic.

    Raises:
        ProgramError: the header does not add up.
    """
    try:
        text = _core.schedule(
            header.text,
            **native_costs(costs, graph, header.levels),
            overlap=overlap,
        )
    except ValueError as error:
        raise ProgramError(str(error)) from error
    program = parse_program(text)
    check(program)
    return program


class NativeCosts(TypedDict):
    """Prices as C++ takes them (csrc/core/costs.h)."""

    call_ns: list[int]
    gather: list[_core.Rate]
    reduce: list[_core.Rate]
    memory: _core.Rate


def native_costs(costs: Prices, graph: GraphSpec, levels: Sequence[Level]) -> NativeCosts:
    """Of every call, and of gathering and reducing over every level."""
    return {
        "call_ns": [costs.call_ns(call) for call in graph.calls],
        "gather": [_native(costs.transfer_rate("all_gather", level)) for level in levels],
        "reduce": [_native(costs.transfer_rate(reduction_over(level), level)) for level in levels],
        "memory": _native(costs.memory),
    }


def check(program: Program) -> None:
    """Refuse a Program that could compute anything but one training step (csrc/core/checking.h).

    Raises:
        ProgramError: one line for each problem, with the number of its instruction.
    """
    try:
        problems = _core.check_program(program.text)
    except ValueError as error:
        raise ProgramError(str(error)) from error
    if problems:
        raise ProgramError(*problems)


def reduction_over(level: Level) -> Transfer:
    """Replicas keep whole sums; all other levels cut them."""
    return "all_reduce" if level.state == "R" else "reduce_scatter"


def _values(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"%{name}" for name in names)


def _native(rate: Rate) -> _core.Rate:
    return _core.Rate(rate.latency_ns, rate.bytes_per_us)
