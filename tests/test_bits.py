"""comm.reduction=ordered: every legal plan gives equal bits, with overlap on or off, wherever a host ends.
run.world_invariant: so does any number of ranks. Bits of losses, norms, weights and optimizer states."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch

from internevo_engine.runtime.launch import ALONE, Place
from tests.ranks import run_ranks
from tests.test_engine import MICRO_BATCHES, Outcome, Sizes, config, engine_loop

STEPS = 30


def legal(world: int) -> list[Sizes]:
    divisors = [n for n in range(1, world + 1) if world % n == 0]
    return [(p, g, o) for p, g, o in product(divisors, repeat=3) if g % p == 0 and o % g == 0]


@dataclass(frozen=True)
class Variant:
    """What must not change a bit."""

    sizes: Sizes
    ranks_per_host: int
    overlap: bool = True
    bucket_mb: float = 0.05


def train_all(place: Place, variants: list[Variant]) -> list[Outcome]:
    """One process for all: starting ranks costs more than training this model."""
    outcomes = []
    for v in variants:
        keys = {"overlap": v.overlap, "bucket_mb": v.bucket_mb, "reduction": "ordered"}
        cfg = config(sizes=v.sizes, grad_accum=max(MICRO_BATCHES, place.world) // place.world, **keys)
        outcomes.append(engine_loop(place, cfg, ranks_per_host=v.ranks_per_host, steps=STEPS))
    return outcomes


def assert_equal_bits(outcome: Outcome, expected: Outcome, of: object) -> None:
    assert outcome.losses == expected.losses, of
    assert outcome.norms == expected.norms, of
    for found, wanted in ((outcome.weights, expected.weights), (outcome.states, expected.states)):
        assert found.keys() == wanted.keys()
        assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == [], of


@pytest.mark.parametrize("world", [1, 2, 4, pytest.param(8, marks=pytest.mark.slow)])
def test_every_plan_gives_equal_bits(tmp_path: Path, world: int):
    variants = [Variant(sizes, world) for sizes in legal(world)]
    variants += [Variant((1, 1, world), world, overlap=False), Variant((1, 1, 1), world, bucket_mb=5.0)]
    variants += [Variant((world, world, world), 1), Variant((1, 1, world), max(1, world // 2))]
    for outcomes in run_ranks(train_all, world, tmp_path, variants):
        for variant, outcome in zip(variants, outcomes, strict=True):
            assert_equal_bits(outcome, outcomes[0], variant)


INVARIANT = {1: (1, 1, 1), 2: (1, 1, 2), 4: (2, 4, 4), 8: (8, 8, 8)}
"""For each number of ranks another plan."""


def train_invariant(place: Place, global_batch: int) -> Outcome:
    grad_accum = global_batch // place.world
    return engine_loop(
        place, config(sizes=INVARIANT[place.world], grad_accum=grad_accum, world_invariant=True), steps=STEPS
    )


@pytest.fixture(scope="module")
def alone() -> Outcome:
    torch.set_num_threads(1)
    return train_invariant(ALONE, 8)


@pytest.mark.parametrize("world", [2, 4, pytest.param(8, marks=pytest.mark.slow)])
def test_any_number_of_ranks_gives_equal_bits(tmp_path: Path, alone: Outcome, world: int):
    for outcome in run_ranks(train_invariant, world, tmp_path, 8):
        assert_equal_bits(outcome, alone, world)
