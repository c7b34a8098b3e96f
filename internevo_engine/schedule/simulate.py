"""schedule: a Program run on paper. Takes a Program and prices, hands on when each instruction runs and where the time
of the step goes.

The events are C++ (csrc/core/simulation.h): the same lanes and numbers as the executor's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from internevo_engine import _core
from internevo_engine.plan.cost import CONTENTION
from internevo_engine.program import LANES, Kind, Program, ProgramError
from internevo_engine.schedule.costs import Prices
from internevo_engine.schedule.graph_spec import GraphSpec
from internevo_engine.schedule.make_program import native_costs
from internevo_engine.schedule.report import Span

Cause = str
"""What a moment of the step is spent on: 'compute', or what is under way while nothing is computed."""


class Simulator:
    """A Program that is parsed once and run for as many prices as are tried."""

    def __init__(self, program: Program, graph: GraphSpec) -> None:
        """Raises ProgramError if C++ can't read the Program."""
        self.program = program
        self._graph = graph
        try:
            self._native = _core.Simulation(program.text)
        except ValueError as error:
            raise ProgramError(str(error)) from error

    def run(self, prices: Prices) -> list[Span]:
        """When each instruction runs, by number."""
        costs = native_costs(prices, self._graph, self.program.levels)
        return [Span(*times) for times in self._native.run(**costs, contention=CONTENTION)]

    def step_s(self, prices: Prices) -> float:
        """Seconds of a step."""
        return max((span.end for span in self.run(prices)), default=0) / 1e9


@dataclass(frozen=True)
class _Edge:
    """A lane's instruction begins or ends."""

    time: int
    cause: Cause
    change: int


def causes(program: Program, spans: Sequence[Span]) -> dict[Cause, int]:
    """Nanoseconds of the step by what they are spent on; they add up to the step.

    Every moment in which something is computed counts as computing. The others are exposed: they count for the first of
    what is under way, in the order far links, near links, update, packing; 'waiting' if nothing is.
    """
    links: Mapping[str | None, str] = {level.name: level.link for level in program.levels}
    edges = [
        _Edge(time, _cause(each.kind, links.get(each.level, "")), change)
        for each, span in zip(program.instructions, spans, strict=True)
        if span.end > span.start
        for time, change in ((span.start, 1), (span.end, -1))
    ]
    running = dict.fromkeys(_ORDER, 0)
    spent = dict.fromkeys(_ORDER, 0) | {"waiting": 0}
    now = 0
    for edge in sorted(edges, key=lambda edge: edge.time):
        spent[next((cause for cause in _ORDER if running[cause]), "waiting")] += edge.time - now
        running[edge.cause] += edge.change
        now = edge.time
    return spent


_ORDER: tuple[Cause, ...] = (
    "compute",
    "far gather",
    "far reduce",
    "near gather",
    "near reduce",
    "norm",
    "update",
    "pack and add",
)


def _cause(kind: Kind, link: str) -> Cause:
    names: Mapping[str, Cause] = {
        "gather": f"{link} gather",
        "refresh": f"{link} gather",
        "reduce": f"{link} reduce",
        "free": "pack and add",
        "pack": "pack and add",
        "accumulate": "pack and add",
    }
    return names.get(kind, kind)


def busy_share(program: Program, spans: Sequence[Span]) -> dict[str, float]:
    """Of the step, for each lane."""
    total = max((span.end for span in spans), default=0) or 1
    busy = dict.fromkeys(LANES, 0)
    for each, span in zip(program.instructions, spans, strict=True):
        busy[each.lane] += span.end - span.start
    return {lane: time / total for lane, time in busy.items()}
