"""Sizes that don't fit well: 3 ranks, a vocabulary of 92,544, a parameter smaller than its group.

Each trains like the plain loop, holds the bytes that the plan says, and gathers no more than its window.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from internevo_engine.config.schema import Config
from internevo_engine.data.packing import MicroBatch
from internevo_engine.engine import Engine
from internevo_engine.models.families import parameters
from internevo_engine.plan.plan import describe, make_plan
from internevo_engine.plan.topology import Topology
from internevo_engine.program import Program
from internevo_engine.runtime.launch import Place
from tests.ranks import run_ranks
from tests.test_bits import legal
from tests.test_engine import (
    SHAPE,
    Outcome,
    Sizes,
    assert_equal,
    config,
    engine_loop,
    plain_loop,
)

INTERNLM2 = {**SHAPE, "family": "internlm2", "vocab": 92_544, "hidden": 16, "ffn": 24}
TINY = {**SHAPE, "hidden": 2, "heads": 1, "kv_heads": 1, "ffn": 3}


@dataclass
class Memory:
    """Bytes on one rank after a step, found and said before."""

    states: int
    forecast: int
    gathered: int
    """The most that was alive at once in a step."""
    window: int


def train_all(place: Place, configs: list[Config]) -> list[tuple[Outcome, list[Memory]]]:
    return [train(place, cfg) for cfg in configs]


def train(place: Place, cfg: Config) -> tuple[Outcome, list[Memory]]:
    memory: list[Memory] = []
    outcome = engine_loop(place, cfg, steps=cfg.run.steps, watch=lambda engine: memory.append(memory_of(engine)))
    return outcome, memory


def memory_of(engine: Engine[MicroBatch]) -> Memory:
    assert engine.program is not None
    gathered = most_gathered(engine.program, engine._step.trace.tolist())
    return Memory(engine.state.num_bytes, engine.plan.memory.states, gathered, engine.program.window_bytes)


def most_gathered(program: Program, trace: list[list[int]]) -> int:
    """Bytes of gathered parameters at once in the last step, from when each instruction really began and ended."""
    sizes = {b.name: b.bytes for b in program.buffers if b.name.startswith("param[") and not b.persistent}
    changes: list[tuple[int, int]] = []
    for each, (begin, end) in zip(program.instructions, trace, strict=True):
        names: Iterable[str] = sizes.keys() & set(each.writes)
        if each.kind == "free":
            changes += [(end, -sizes[name]) for name in names]
        elif each.reads != each.writes:  # not in place: the buffer is born here
            changes += [(begin, sizes[name]) for name in names]
    alive = most = 0
    for _, change in sorted(changes):
        alive += change
        most = max(most, alive)
    assert alive == 0
    return most


def expect_the_plain_loop_and_the_plan(world: int, folder: Path, configs: list[Config], micro_batches: int) -> None:
    expected = plain_loop(configs[0], micro_batches)
    for results in run_ranks(train_all, world, folder, configs):
        for cfg, (outcome, memory) in zip(configs, results, strict=True):
            assert_equal(outcome, expected)
            for found in memory:
                assert found.states == found.forecast, cfg.zero
                assert found.gathered <= found.window, cfg.zero
                assert (found.gathered > 0) == (cfg.zero.param != 1), cfg.zero


def test_three_ranks_train_like_one_in_every_plan(tmp_path: Path) -> None:
    configs = [config(sizes=sizes, grad_accum=2) for sizes in legal(3)]
    configs += [config(sizes=sizes, grad_accum=2, reduction="ordered") for sizes in ((1, 1, 1), (3, 3, 3))]
    expect_the_plain_loop_and_the_plan(3, tmp_path, configs, micro_batches=6)


@pytest.mark.parametrize("world", [2, 3])
def test_a_vocabulary_of_92544_is_cut_over_any_number_of_ranks(tmp_path: Path, world: int) -> None:
    cfg = config(sizes=(world, world, world), shape=INTERNLM2, steps=10)
    expect_the_plain_loop_and_the_plan(world, tmp_path, [cfg], micro_batches=world)


def test_a_parameter_smaller_than_its_group_is_trained_right(tmp_path: Path) -> None:
    sizes: list[Sizes] = [(1, 1, 4), (2, 4, 4), (4, 4, 4)]
    configs = [config(sizes=each, shape=TINY, bucket_mb=1e-6) for each in sizes]
    plan = make_plan(configs[0], parameters(configs[0].model), Topology(4, 4, "cpu"))
    alone = [plan.params[bucket.params[0]].numel for bucket in plan.buckets if len(bucket.params) == 1]
    assert len(alone) == len(plan.buckets)
    assert min(alone) == 2
    expect_the_plain_loop_and_the_plan(4, tmp_path, configs, micro_batches=4)


@pytest.mark.parametrize(
    ("world", "keys", "sentence"),
    [
        (3, {}, "bits are not promised across plans, for 3 ranks are no power of two"),
        (2, {"wire": "bf16"}, "bits are not promised across plans, for comm.wire=bf16 rounds at every level"),
        (4, {}, "equal bits for every plan"),
    ],
)
def test_the_plan_says_which_bits_it_promises(world: int, keys: dict[str, str], sentence: str) -> None:
    cfg = config(reduction="ordered", **keys)
    topology = Topology(world, world, "cpu")
    assert sentence in describe(cfg, make_plan(cfg, parameters(cfg.model), topology))
    assert "sums" not in describe(cfg, make_plan(config(), parameters(cfg.model), topology))
