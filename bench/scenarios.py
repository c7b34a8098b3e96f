"""The comparisons that are run: names, links, plans and peers, as rows. Needing root: LAB; on this machine: `here`."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from bench.compare import Scenario
from bench.job import Contestant, Job
from bench.workload import SIZES, Settings

WHOLE = ("ddp", "ddp-compiled", "ddp-zero1", "hsdp", "hsdp-noreshard", "deepspeed-zero1", "deepspeed-zero2")
SHARDED = ("fsdp2", "fsdp2-compiled", "fsdp2-noreshard", "deepspeed-zero3")
BF16 = ("hsdp-bf16", "hsdp-bf16-noreshard")
TWO, FOUR = Job(1, hosts=2, rate="400mbit"), Job(2, hosts=2, rate="400mbit")
IN_HOST = (1, 1, 2)
"""Optimizer states over the ranks of a host: every rank sends only its half to the other host."""

LAB = (
    Scenario("2x1 400mbit", TWO, Settings(), (*WHOLE, *SHARDED)),
    Scenario("2x1 400mbit bf16", TWO, Settings(wire="bf16"), BF16),
    Scenario("2x1 400mbit sharded", TWO, Settings(zero=(2, 2, 2)), SHARDED),
    Scenario("2x2 400mbit", FOUR, Settings(zero=IN_HOST), (*WHOLE, *SHARDED)),
    Scenario("2x2 400mbit bf16", FOUR, Settings(zero=IN_HOST, wire="bf16"), BF16),
    Scenario("2x2 200mbit", Job(2, hosts=2, rate="200mbit"), Settings(zero=IN_HOST), WHOLE),
    Scenario("2x2 1gbit", Job(2, hosts=2, rate="1gbit"), Settings(zero=IN_HOST), WHOLE),
    Scenario("2x2 400mbit accumulate 8", FOUR, Settings(zero=IN_HOST, accumulate=8), ("ddp", "hsdp-noreshard")),
    Scenario("2x1 400mbit 25M", TWO, Settings(size="25M"), ("ddp", "ddp-compiled", "hsdp-noreshard", "fsdp2")),
    Scenario("2x1 400mbit 60M", TWO, Settings(size="60M"), ("ddp", "ddp-compiled", "hsdp-noreshard", "fsdp2")),
)


def here(world: int) -> Scenario:
    """Links as they are; one host, so that hsdp would be fsdp2."""
    peers = ("ddp", "ddp-compiled", "ddp-zero1", *SHARDED, "deepspeed-zero1", "deepspeed-zero2")
    return Scenario(f"{world} ranks", Job(world), Settings(), peers)


def all_sharded(world: int) -> Scenario:
    """Parameters, gradients and optimizer states over all ranks: for its memory."""
    settings = Settings(size="60M", zero=(world, world, world))
    return Scenario(f"{world} ranks 60M sharded", Job(world), settings, ("fsdp2", "fsdp2-compiled"))


def overlapping(name: str, job: Job, settings: Settings) -> Scenario:
    """The engine with communication beside computing and after it."""
    serial = Contestant("engine, no overlap", "engine", replace(settings, overlap=False))
    return Scenario(name, job, settings, variants=(serial,), compute=("engine-local",))


OVERLAP_LAB = tuple(
    overlapping(f"overlap 2x1 {rate}", Job(1, hosts=2, rate=rate), Settings())
    for rate in ("200mbit", "400mbit", "1gbit")
)


LONG = {name for name, size in SIZES.items() if size.hidden > 256}


def rows(scenario: Scenario) -> Iterator[object]:
    """A test for each contestant of a scenario, marked with what it needs."""
    marks = [pytest.mark.lab] if scenario.job.rate else []
    if scenario.engine.size in LONG:
        marks.append(pytest.mark.long)
    for contestant in scenario.contestants:
        yield pytest.param(scenario, contestant.label, id=f"{scenario.name}: {contestant.label}", marks=marks)
