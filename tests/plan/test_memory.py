"""The memory forecast against what is really kept."""

import pytest
import torch

from internevo_engine.config.schema import Config, DataConfig, ModelConfig, OptimConfig, ZeroConfig
from internevo_engine.data.packing import RandomCorpus
from internevo_engine.engine import Engine
from internevo_engine.models.families import parameters
from internevo_engine.models.initialize import build
from internevo_engine.models.loss import token_loss
from internevo_engine.plan.memory import saved_bytes_per_token
from internevo_engine.plan.plan import make_plan
from internevo_engine.plan.topology import Topology
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.runtime.launch import Place
from tests.ranks import run_ranks

CPU = torch.device("cpu")
MODEL = ModelConfig(family="internlm2", vocab=300, layers=4, hidden=64, heads=4, kv_heads=2, ffn=160)


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_saved_activations_are_what_autograd_keeps(kv_heads, dtype, size):
    model = MODEL.model_copy(update={"kv_heads": kv_heads})
    seq_len, micro_batch = 128, 4
    decoder = build(model, seq_len, dtype, CPU, seed=0)
    batch = RandomCorpus(300, seq_len=seq_len, micro_batch=micro_batch, seed=0).micro_batch(0, 0, 1)
    owned = {p.untyped_storage().data_ptr() for p in [*decoder.parameters(), *decoder.buffers()]}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = decoder(batch.tokens, batch.positions, batch.cu_seqlens)
    assert logits.requires_grad
    forecast = saved_bytes_per_token(model, size, "cpu") * seq_len * micro_batch
    assert forecast == pytest.approx(sum(kept.values()), rel=0.01)


def engine_bytes(place: Place, cfg: Config) -> tuple[int, int]:
    plan = make_plan(cfg, parameters(cfg.model), Topology(place.world, place.world, "cpu"))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[plan.dtype]
    model = build(cfg.model, cfg.data.seq_len, dtype, CPU, seed=0)
    engine = Engine(model, token_loss, plan, Communicator(place, CPU, plan.optim_group))
    engine.close()
    return engine.state.num_bytes, plan.memory.states


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("world", "optim_group"), [(1, 1), (2, 2)])
def test_states_are_the_bytes_that_the_plan_says(tmp_path, dtype, world, optim_group):
    model = MODEL.model_copy(update={"dtype": dtype})
    cfg = Config(model=model, data=DataConfig(seq_len=32), optim=OptimConfig(), zero=ZeroConfig(optim=optim_group))
    for found, planned in run_ranks(engine_bytes, world, tmp_path, cfg):
        assert found == planned
