"""Contestants side by side: interleaved rounds, ratios within a round, the limit of the same round.

    Scenario -> compare(scenario) -> Comparison -> record(one row) -> pytest-benchmark

A machine's speed drifts from minute to minute, so a ratio is taken between runs that followed each other, and what is
reported is the median of the rounds' ratios.
"""

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.job import Contestant, Job, Outcome, Run
from bench.peers.table import PEERS
from bench.workload import Settings

SAME_LOSS = 1e-3
"""Relative; a row whose losses differ from the engine's by more does not count."""
COMPUTE = ("engine-local", "local", "local-compiled")


@dataclass(frozen=True)
class Scenario:
    """The engine with one plan, and those it is compared with, in one job."""

    name: str
    job: Job
    engine: Settings
    peers: tuple[str, ...] = ()
    variants: tuple[Contestant, ...] = ()
    """The engine with other settings."""
    compute: tuple[str, ...] = COMPUTE
    """Rows without communication, whose fastest is compute alone."""

    @property
    def contestants(self) -> tuple[Contestant, ...]:
        """The same workload for all."""
        names = dict.fromkeys(("engine", *self.peers, *self.compute))
        return (*(Contestant(name, name, self.engine) for name in names), *self.variants)


@dataclass(frozen=True)
class Comparison:
    """All rounds of a scenario."""

    scenario: Scenario
    rounds: Mapping[str, Sequence[Outcome]]
    """By label, in the order of the rounds."""
    failed: Mapping[str, Exception]
    """By label; a contestant that failed once has no rounds."""

    def seconds(self, label: str) -> list[float]:
        """Of a step: the median of each round."""
        return [outcome.measured.median_s for outcome in self.rounds[label]]

    def ratio(self, slow: Sequence[float], fast: Sequence[float]) -> float:
        """Median over the rounds of slow / fast."""
        return median(a / b for a, b in zip(slow, fast, strict=True))

    @property
    def compute_alone_s(self) -> list[float]:
        """The fastest step without communication, on as many ranks at once, of each round."""
        rows = [self.seconds(name) for name in self.scenario.compute if name in self.rounds]
        return [min(times) for times in zip(*rows, strict=True)]

    @property
    def limit_s(self) -> list[float]:
        """max(compute alone, bytes that the engine's plan must send over a host's link / line rate), of each round."""
        return [
            max(compute, self._link_s(outcome))
            for compute, outcome in zip(self.compute_alone_s, self.rounds["engine"], strict=True)
        ]

    def _link_s(self, outcome: Outcome) -> float:
        if outcome.line_rate is None:
            return 0.0
        far_bytes = outcome.measured.planned_bytes.get("far", 0) * self.scenario.job.ranks_per_host
        return far_bytes / outcome.line_rate

    def loss_difference(self, label: str) -> float:
        """Largest relative difference to the engine's losses; without communication only the first loss is shared."""
        ours, theirs = (self.rounds[name][0].measured for name in ("engine", label))
        shared = 1 if PEERS[theirs.peer].kind == "compute" else len(ours.losses)
        return max(abs(b - a) / a for a, b in zip(ours.losses[:shared], theirs.losses[:shared], strict=True))

    def facts(self, label: str) -> dict[str, object]:
        """What a table says of a row beside its seconds."""
        outcome, job = self.rounds[label][0], self.scenario.job
        measured, seconds = outcome.measured, self.seconds(label)
        return {
            "scenario": self.scenario.name,
            "row": label,
            "ranks": measured.world,
            "parameters": measured.parameters,
            "tokens": measured.rank_tokens * measured.world,
            "flops": measured.rank_flops * measured.world,
            "bytes_sent_by_host": measured.sent_bytes["eth0"] if job.rate else None,  # a shared loopback tells nothing
            "bytes_planned_by_host": measured.planned_bytes.get("far", 0) * job.ranks_per_host if job.rate else None,
            "line_rate_bytes_per_s": outcome.line_rate,
            "limit_s": round(median(self.limit_s), 4),
            "ratio_to_limit": round(self.ratio(self.limit_s, seconds), 3),
            "engine_speedup": round(self.ratio(seconds, self.seconds("engine")), 3),
            "loss_difference": self.loss_difference(label),
            "last_loss": measured.losses[-1],
            "resident_bytes": measured.resident_bytes,
        }


def compare(scenario: Scenario, run: Run, rounds: int, contestants: Sequence[Contestant]) -> Comparison:
    """Every contestant once, then all again; one that fails is left out from then on."""
    outcomes: dict[str, list[Outcome]] = {each.label: [] for each in contestants}
    failed: dict[str, Exception] = {}
    for _ in range(rounds):
        for each in contestants:
            if each.label not in failed:
                try:
                    outcomes[each.label].append(run(each, scenario.job))
                except subprocess.SubprocessError as error:
                    failed[each.label] = error
    return Comparison(scenario, {label: rows for label, rows in outcomes.items() if label not in failed}, failed)


class Replay:
    """A clock for pytest-benchmark that shows seconds measured elsewhere, by the ranks themselves."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        return self._now

    def play(self, seconds: Sequence[float]) -> Callable[[], None]:
        """A function that takes the next of `seconds` on this clock, each time it is called."""
        rest = iter(seconds)

        def take() -> None:
            self._now += next(rest)

        return take
