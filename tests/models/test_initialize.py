import math

import pytest
import torch

from internevo_engine.config.schema import ModelConfig
from internevo_engine.models.decoder import Decoder
from internevo_engine.models.families import FAMILIES, architecture, parameters
from internevo_engine.models.initialize import build, draw

CPU = torch.device("cpu")


def small(family: str, **keys: object) -> ModelConfig:
    shape = {"vocab": 512, "layers": 3, "hidden": 128, "heads": 4, "kv_heads": 2, "ffn": 192}
    return ModelConfig.model_validate({"family": family, **shape, **keys})


def built(model: ModelConfig, dtype: torch.dtype = torch.float32, seed: int = 1) -> Decoder:
    return build(model, 16, dtype, CPU, seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_have_the_deviation_of_their_row(family: str) -> None:
    row, state = FAMILIES[family], built(small(family)).state_dict()
    expected = {
        "embedding.weight": row.embed_init_std,
        "head.weight": row.embed_init_std,
        "layers.2.attention.wqkv.weight": row.init_std,
        "layers.2.feed_forward.w13.weight": row.init_std,
        "layers.0.attention.wo.weight": row.init_std / math.sqrt(2),
        "layers.2.attention.wo.weight": row.init_std / math.sqrt(6),
        "layers.2.feed_forward.w2.weight": row.init_std / math.sqrt(6),
    }
    found = {name: state[name].std().item() for name in expected}
    assert found == pytest.approx(expected, rel=0.03)  # 16384 draws or more: 0.6 % is one standard error
    assert all(abs(state[name].mean().item()) < 0.03 * std for name, std in expected.items())


def test_norms_start_at_one_and_biases_at_zero() -> None:
    vectors = {name: value for name, value in built(small("internlm")).state_dict().items() if value.ndim == 1}
    assert len(vectors) == 3 * 4 + 1
    assert all(bool((value == (0.0 if name.endswith("bias") else 1.0)).all()) for name, value in vectors.items())


def test_scaled_init_can_be_switched_off() -> None:
    state = built(small("internlm2", scaled_init=False)).state_dict()
    assert state["layers.2.attention.wo.weight"].std().item() == pytest.approx(0.02, rel=0.03)


def test_a_value_depends_on_seed_and_name_only() -> None:
    short, long = built(small("internlm2", layers=2)).state_dict(), built(small("internlm2", layers=3)).state_dict()
    assert all(torch.equal(short[name], long[name]) for name in short)
    model = small("internlm2")
    backwards = {p.name: draw(p, architecture(model), CPU, seed=1) for p in reversed(parameters(model))}
    assert all(torch.equal(backwards[name], long[name]) for name in long)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), built(small("llama")).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(built(small("llama")).state_dict()["head.weight"], first["head.weight"])


def test_another_seed_or_name_gives_other_values() -> None:
    one, two = built(small("llama")).state_dict(), built(small("llama"), seed=2).state_dict()
    assert not torch.equal(one["head.weight"], two["head.weight"])
    assert not torch.equal(one["head.weight"], one["embedding.weight"])


def test_the_values_of_this_seed_stay_the_same() -> None:
    weight = built(small("internlm2"), seed=1024).state_dict()["embedding.weight"]
    torch.testing.assert_close(weight[0, :3], torch.tensor(GOLDEN), atol=1e-6, rtol=0)


GOLDEN = [0.028847376, 0.028335053, -0.003867663]


def test_bf16_parameters_are_the_fp32_ones_rounded() -> None:
    full, half = built(small("internlm")).state_dict(), built(small("internlm"), torch.bfloat16).state_dict()
    assert all(half[name].dtype == torch.bfloat16 for name in half)
    assert all(torch.equal(half[name], full[name].bfloat16()) for name in full)


def test_rope_tables_survive_meta() -> None:
    model = small("internlm3")
    direct = Decoder(model, 16)
    for dtype in (torch.float32, torch.bfloat16):
        rope = built(model, dtype).rope
        assert torch.equal(rope.cos, direct.rope.cos.to(dtype))
        assert torch.equal(rope.sin, direct.rope.sin.to(dtype))
    assert direct.rope.cos[1, 0].item() == pytest.approx(math.cos(1.0))
