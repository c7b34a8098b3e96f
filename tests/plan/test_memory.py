"""The memory forecast against what is really kept."""

import pytest
import torch

from internevo_engine.config.schema import (
    Config,
    DataConfig,
    GraphConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ZeroConfig,
)
from internevo_engine.data.packing import RandomCorpus
from internevo_engine.engine import Engine
from internevo_engine.graph.capture import capture
from internevo_engine.models.families import parameters
from internevo_engine.models.initialize import build
from internevo_engine.models.loss import token_loss
from internevo_engine.plan.memory import decoder_activations, kept_bytes_per_token
from internevo_engine.plan.plan import make_plan
from internevo_engine.plan.topology import Topology
from internevo_engine.runtime.launch import Place
from tests.ranks import run_ranks

CPU = torch.device("cpu")
MODEL = ModelConfig(family="internlm2", vocab=300, layers=4, hidden=64, heads=4, kv_heads=2, ffn=160)


@pytest.mark.parametrize("recompute", ["none", "selective", "full", 0.5])
@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_activations_are_what_a_captured_step_keeps(dtype, size, kv_heads, recompute):
    model = MODEL.model_copy(update={"kv_heads": kv_heads})
    decoder = build(model, 128, dtype, CPU, seed=0)
    batch = RandomCorpus(300, seq_len=128, micro_batch=4, seed=0).micro_batch(0, 0, 1)
    graph = capture(decoder, token_loss, batch, recompute=recompute)
    assert kept_bytes_per_token(model, size, recompute) * 4 * 128 == graph.kept_bytes


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")])
def test_beside_adapters_no_more_is_kept_than_forecast(targets, recompute):
    config = Config(
        model=MODEL,
        lora=LoraConfig(rank=4, targets=targets),
        data=DataConfig(seq_len=128, micro_batch=4),
        graph=GraphConfig(recompute=recompute),
    )
    decoder = build(MODEL, 128, torch.float32, CPU, seed=0, lora=config.lora)
    batch = RandomCorpus(300, seq_len=128, micro_batch=4, seed=0).micro_batch(0, 0, 1)
    graph = capture(decoder, token_loss, batch, recompute=recompute)
    assert 0.4 < graph.kept_bytes / decoder_activations(config, "fp32")["activations"] <= 1


def engine_bytes(place: Place, cfg: Config) -> tuple[int, int]:
    plan = make_plan(cfg, parameters(cfg.model), Topology(place.world, place.world, "cpu"))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[plan.dtype]
    model = build(cfg.model, cfg.data.seq_len, dtype, CPU, seed=0)
    example = RandomCorpus(300, seq_len=cfg.data.seq_len, micro_batch=1, seed=0).micro_batch(0, 0, 1)
    engine = Engine(model, token_loss, **dict(cfg.step), example=example, place=place)
    engine.close()
    return engine.state.num_bytes, plan.memory.states


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("world", "sizes", "invariant"),
    [
        (1, (1, 1, 1), False),
        (2, (1, 1, 2), False),
        (2, (1, 1, 2), True),
        (2, (1, 2, 2), False),
        (4, (2, 2, 4), False),
    ],
)
def test_states_are_the_bytes_that_the_plan_says(tmp_path, dtype, world, sizes, invariant):
    cfg = Config(
        model=MODEL.model_copy(update={"dtype": dtype}),
        data=DataConfig(seq_len=32, grad_accum=4),
        optim=OptimConfig(),
        zero=ZeroConfig(param=sizes[0], grad=sizes[1], optim=sizes[2]),
        graph=GraphConfig(compile="eager"),
        run=RunConfig(world_invariant=invariant),
    )
    for found, planned in run_ranks(engine_bytes, world, tmp_path, cfg):
        assert found == planned
