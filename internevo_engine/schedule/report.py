"""schedule: a Program for people. What it does, what it sends, how long it should take, and an excerpt to read."""

from collections import Counter
from dataclasses import dataclass

from internevo_engine.program import KINDS, LANES, Lane, Program
from internevo_engine.units import format_bytes, format_seconds

LINE_WIDTH = 150


@dataclass(frozen=True)
class Span:
    """When an instruction runs, in nanoseconds from the start of the step."""

    start: int
    end: int


def predict_spans(program: Program) -> list[Span]:
    """Every instruction at its cost, as early as its lane and `after` allow.

    Numbers rise with time in a scheduled Program, so one pass is enough.
    """
    spans: list[Span] = []
    lane_free: dict[Lane, int] = dict.fromkeys(LANES, 0)
    for each in program.instructions:
        start = max([lane_free[each.lane], *(spans[number].end for number in each.after)])
        spans.append(Span(start, start + each.cost))
        lane_free[each.lane] = spans[-1].end
    return spans


def makespan(program: Program) -> int:
    """Predicted nanoseconds of a step."""
    return max((span.end for span in predict_spans(program)), default=0)


def bytes_sent(program: Program) -> dict[str, int]:
    """Bytes that each rank sends in a step, by level ('all': the world)."""
    sent = dict.fromkeys([level.name for level in program.levels], 0)
    for each in program.instructions:
        if each.level is not None:
            sent[each.level] = sent.get(each.level, 0) + each.bytes
    return sent


def _cut(line: str) -> str:
    return line if len(line) <= LINE_WIDTH else f"{line[: LINE_WIDTH - 3]}..."


def excerpt(program: Program) -> str:
    """The first instruction of each kind and of each level, as printed, long ones cut: about ten lines."""
    first = {(each.kind, each.level): number for number, each in reversed(list(enumerate(program.instructions)))}
    lines = program.text.splitlines()[-len(program.instructions) :]
    return "\n".join(_cut(lines[number]) for number in sorted(first.values()))


def describe(program: Program) -> str:
    """Counts, bytes and times of a step, then the excerpt."""
    counts = Counter(each.kind for each in program.instructions)
    sent, links = bytes_sent(program), {level.name: level.link for level in program.levels}
    busy = {lane: sum(each.cost for each in program.instructions if each.lane == lane) for lane in LANES}
    total = makespan(program)
    return "\n".join(
        [
            f"program      {program.hash[:16]}, {len(program.instructions)} instructions, world {program.world}, "
            f"{program.micro_batches} micro-batches, {program.mode}",
            "instructions " + ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind]),
            "sent by rank "
            + ", ".join(f"{name} {links.get(name, 'world')} {format_bytes(n)}" for name, n in sent.items()),
            f"step         {format_seconds(total / 1e9)} predicted",
            "busy lanes   " + ", ".join(f"{lane} {busy[lane] / max(total, 1):.0%}" for lane in LANES),
            "",
            excerpt(program),
        ]
    )
