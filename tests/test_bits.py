"""comm.reduction=ordered: every legal plan gives equal bits, with overlap on or off, wherever a host ends."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch

from internevo_engine.runtime.launch import Place
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
        cfg = config(sizes=v.sizes, grad_accum=MICRO_BATCHES // place.world, **keys)
        outcomes.append(engine_loop(place, cfg, ranks_per_host=v.ranks_per_host, steps=STEPS))
    return outcomes


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_plan_gives_equal_bits(tmp_path: Path, world: int):
    variants = [Variant(sizes, world) for sizes in legal(world)]
    variants += [Variant((1, 1, world), world, overlap=False), Variant((1, 1, 1), world, bucket_mb=5.0)]
    variants += [Variant((world, world, world), 1), Variant((1, 1, world), max(1, world // 2))]
    for outcomes in run_ranks(train_all, world, tmp_path, variants):
        first = outcomes[0]
        for variant, outcome in zip(variants, outcomes, strict=True):
            assert outcome.losses == first.losses, variant
            assert outcome.norms == first.norms, variant
            assert all(torch.equal(outcome.weights[name], weight) for name, weight in first.weights.items()), variant
