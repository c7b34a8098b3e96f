"""The plan: group sizes, buckets, and memory with a way out."""

from pathlib import Path

import pytest

from internevo_engine.config.load import load_config
from internevo_engine.config.schema import Config
from internevo_engine.errors import MemoryNeededError, PlanError
from internevo_engine.models.families import parameters
from internevo_engine.plan.plan import Plan, check_memory, describe, make_plan
from internevo_engine.plan.topology import Topology

CONFIGS = Path(__file__).parents[2] / "configs"


def plan_of(name: str, *overrides: str, **ranks: int) -> Plan:
    return run_of(name, *overrides, **ranks)[1]


def run_of(
    name: str, *overrides: str, world: int = 8, ranks_per_host: int = 8, memory: int | None = None
) -> tuple[Config, Plan]:
    config = load_config(CONFIGS / name, overrides)
    return config, make_plan(config, parameters(config.model), Topology(world, ranks_per_host, "cuda", memory))


@pytest.mark.parametrize(("asked", "size"), [("node", 8), ("world", 64), ("1", 1), ("16", 16)])
def test_group_sizes_are_numbers_or_names(asked, size):
    assert plan_of("7B.yaml", f"zero.optim={asked}", world=64).sizes.optim == size


@pytest.mark.parametrize("sizes", [(1, 1, 8), (1, 8, 8), (8, 8, 8), (1, 4, 64), (8, 8, 64)])
def test_each_state_is_cut_over_its_own_group(sizes):
    p, g, o = sizes
    plan = plan_of("7B.yaml", f"zero.param={p}", f"zero.grad={g}", f"zero.optim={o}", world=64)
    numel = sum(bucket.numel for bucket in plan.buckets)
    assert plan.memory.parameters == numel // p * 2
    assert plan.memory.gradients == numel // g * 4
    assert plan.memory.optimizer == numel // o * 12


def test_a_group_that_does_not_divide_names_those_that_do():
    with pytest.raises(PlanError, match="zero.optim=6 does not divide world=8; use 1, 2, 4 or 8"):
        plan_of("7B.yaml", "zero.optim=6")


@pytest.mark.parametrize(
    ("world", "override", "message"),
    [
        (12, "comm.wire=fp32", "needs powers of two, found world=12; use 8 or 16"),
        (8, "data.grad_accum=6", "needs powers of two, found grad_accum=6; use 4 or 8"),
        (8, "comm.wire=bf16", "needs comm.wire=fp32, found bf16"),
        (8, "graph.mode=hooks", "world_invariant=true needs graph.mode=graph"),
    ],
)
def test_world_invariance_refuses_what_would_break_it(world, override, message):
    with pytest.raises(PlanError, match=message):
        plan_of("7B.yaml", "run.world_invariant=true", override, "zero.optim=1", world=world, ranks_per_host=4)


def test_world_invariance_is_ordered_with_a_sum_for_every_doubling_of_micro_batches():
    (_, plain), (config, invariant) = (
        run_of("7B.yaml", f"run.world_invariant={asked}", "data.grad_accum=8") for asked in ("false", "true")
    )
    assert (plain.mode, invariant.mode) == ("fast", "invariant")
    numel = sum(bucket.numel for bucket in plain.buckets)
    assert invariant.memory.gradients == 4 * numel // 8 * 4  # of 1, 2, 4 and 8 micro-batches; fp32 over zero.optim=8
    assert "any power of two of ranks" in describe(config, invariant)


def test_uneven_hosts_are_refused():
    with pytest.raises(PlanError, match="world=12 ranks don't fill hosts of 8"):
        Topology(12, 8, "cuda")


def test_every_parameter_is_in_one_bucket_and_every_bucket_divides():
    plan = plan_of("7B.yaml")
    assert sorted(index for bucket in plan.buckets for index in bucket.params) == list(range(len(plan.params)))
    assert all(bucket.numel % (8 * 16) == 0 for bucket in plan.buckets)


def test_decay_spares_vectors_unless_all_is_asked():
    spared = plan_of("internlm2_7B.yaml").buckets[0]
    assert spared.decayed_numel < spared.numel or len(spared.params) == 1
    everything = plan_of("internlm2_7B.yaml", "optim.decay=all")
    assert all(bucket.decayed_numel >= bucket.offsets[-1] for bucket in everything.buckets)


def test_smaller_buckets_are_more_buckets():
    small, large = (plan_of("internlm2_1.8B.yaml", f"comm.bucket_mb={mb}") for mb in (8, 4000))
    assert len(small.buckets) > len(large.buckets)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_every_config_plans_for_1024_gpus_and_prints(path):
    config, plan = run_of(path.name, world=1024)
    text = describe(config, plan)
    assert f"= {config.step_tokens(1024):,} tokens a step" in text
    assert "total" in text


def test_7b_fits_eight_gpus_of_80_gb_and_not_of_40():
    check_memory(*run_of("7B.yaml", memory=85_000_000_000))
    with pytest.raises(MemoryNeededError) as caught:
        check_memory(*run_of("7B.yaml", memory=42_000_000_000))
    assert "a rank needs 78.4 GB" in str(caught.value)
    assert "only 42 GB are there" in str(caught.value)


def test_the_remedy_fits():
    config, plan = run_of("7B.yaml", "zero.optim=1", "data.micro_batch=4", world=64, memory=85_000_000_000)
    with pytest.raises(MemoryNeededError) as caught:
        check_memory(config, plan)
    remedy = str(caught.value).split("to fit: ")[1].split(", or ")[0]
    check_memory(
        *run_of("7B.yaml", "zero.optim=1", "data.micro_batch=4", *remedy.split(), world=64, memory=85_000_000_000)
    )


def test_a_plan_is_the_same_every_time():
    assert describe(*run_of("20B.yaml", world=128)) == describe(*run_of("20B.yaml", world=128))
