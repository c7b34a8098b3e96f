"""Adapters beside a decoder: the table and the module agree, and what they add is B A x."""

import pytest
import torch

from internevo_engine.config.schema import LoraConfig, ModelConfig
from internevo_engine.graph.module import parameter_table
from internevo_engine.models.decoder import Decoder
from internevo_engine.models.families import is_adapter, parameters
from internevo_engine.models.flops import model_flops
from internevo_engine.models.initialize import build

CPU = torch.device("cpu")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def tiny(family: str = "internlm") -> ModelConfig:
    shape = {"vocab": 97, "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 40, "init_std": 0.2}
    return ModelConfig.model_validate({"family": family, **shape})


def decoder(lora: LoraConfig, family: str = "internlm") -> Decoder:
    return build(tiny(family), 16, torch.float32, CPU, seed=1, lora=lora)


def logits(model: Decoder) -> torch.Tensor:
    tokens = torch.arange(16)
    with torch.no_grad():
        return model(tokens, torch.arange(16), torch.tensor([0, 16], dtype=torch.int32))


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("k_proj", "down_proj"), ALL])
@pytest.mark.parametrize("family", ["internlm", "llama"])
def test_the_table_is_the_module_and_adapters_alone_are_trained(family: str, targets: tuple[str, ...]) -> None:
    lora = LoraConfig(rank=3, targets=targets)
    model = decoder(lora, family)
    assert parameter_table(model) == parameters(tiny(family), lora)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if is_adapter(name)
    }
    assert len([name for name, _ in model.named_parameters() if is_adapter(name)]) == 2 * 2 * len(targets)


def test_a_model_begins_as_it_was() -> None:
    assert torch.equal(logits(decoder(LoraConfig(rank=4, targets=ALL))), logits(decoder(LoraConfig())))


def test_an_adapter_adds_its_product_to_the_rows_of_its_part() -> None:
    lora = LoraConfig(rank=2, alpha=6.0, targets=ALL)
    adapted, merged = decoder(lora), decoder(LoraConfig())
    with torch.no_grad():
        for layer, plain in zip(adapted.layers, merged.layers, strict=True):
            for module, rows in (
                ("attention.wqkv", {"q_proj": 32, "k_proj": 16, "v_proj": 16}),
                ("attention.wo", {"o_proj": 32}),
                ("feed_forward.w13", {"gate_proj": 40, "up_proj": 40}),
                ("feed_forward.w2", {"down_proj": 32}),
            ):
                first = 0
                for part, count in rows.items():
                    adapter = layer.get_submodule(f"{module}.{part}")
                    adapter.lora_B.normal_()
                    delta = 3.0 * adapter.lora_B @ adapter.lora_A
                    plain.get_submodule(module).weight[first : first + count] += delta
                    first += count
    torch.testing.assert_close(logits(adapted), logits(merged), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(adapted), logits(decoder(LoraConfig())), atol=0.1)


def test_frozen_weights_cost_two_thirds() -> None:
    lora = LoraConfig(rank=2)
    model = tiny()
    whole, adapted = (model_flops(model, 1000, 0, each) for each in (LoraConfig(), lora))
    adapters = sum(param.numel for param in parameters(model, lora) if param.trained)
    assert adapted == whole * 2 // 3 + 6 * adapters * 1000
