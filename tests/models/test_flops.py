import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from internevo_engine.config.schema import ModelConfig
from internevo_engine.models.flops import internevo_flops_per_token, model_flops
from internevo_engine.models.initialize import build
from internevo_engine.models.loss import summed_cross_entropy


def internlm(**shape: int) -> ModelConfig:
    return ModelConfig.model_validate({"family": "internlm", "vocab": 103168, **shape})


SEVEN_B = internlm(layers=32, hidden=4096, heads=32, ffn=11008)
TWENTY_B = internlm(layers=60, hidden=5120, heads=40, ffn=13824)


@pytest.mark.parametrize("tied", [False, True])
def test_matmul_flops_are_those_that_torch_counts(tied: bool) -> None:
    shape = {"vocab": 80, "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "tie_embeddings": tied}
    model = ModelConfig.model_validate({"family": "internlm", **shape})
    decoder = build(model, 16, torch.float32, torch.device("cpu"), seed=0)
    tokens, cu_seqlens = torch.arange(16), torch.tensor([0, 16], dtype=torch.int32)
    with FlopCounterMode(display=False) as counter:
        summed_cross_entropy(decoder(tokens, torch.arange(16), cu_seqlens), tokens).backward()
    counts = counter.get_flop_counts()["Global"]
    matmuls = sum(flops for op, flops in counts.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    assert matmuls == model_flops(model, num_tokens=16, sum_squared_lengths=0)


def test_attention_flops_are_those_of_the_unmasked_pairs() -> None:
    length = 4096
    pairs = sum(query + 1 for query in range(length))
    multiply_adds = 2 * pairs * SEVEN_B.hidden * SEVEN_B.layers  # a dot product and a weighted sum for each pair
    assert model_flops(SEVEN_B, 0, length**2) == pytest.approx(3 * 2 * multiply_adds, rel=1 / length)


def test_short_documents_cost_less_attention() -> None:
    assert model_flops(SEVEN_B, 4096, 4096**2) - model_flops(SEVEN_B, 4096, 2 * 2048**2) == 6 * 32 * 4096 * 2 * 2048**2


def test_internevo_flops_are_those_of_its_tables() -> None:
    assert internevo_flops_per_token(SEVEN_B, 2048) / 1e9 == pytest.approx(44.41, abs=0.005)
    assert internevo_flops_per_token(TWENTY_B, 2048) / 1e9 == pytest.approx(123.97, abs=0.005)


def test_internevo_counts_more_than_the_model_needs() -> None:
    ours = model_flops(SEVEN_B, 2048, 2048**2) / 2048
    full_attention = 6 * 32 * 4096 * 2048
    rounded_ffn = 6 * 32 * 3 * 4096 * (11008 - 4096 * 8 / 3)
    assert internevo_flops_per_token(SEVEN_B, 2048) == pytest.approx(ours + full_attention - rounded_ffn)
