from pathlib import Path

import pytest
import yaml

from internevo_engine.config.load import load_config
from internevo_engine.config.schema import Config
from internevo_engine.models.families import architecture, parameters
from internevo_engine.plan.plan import make_plan
from internevo_engine.plan.topology import Topology

CONFIGS = Path(__file__).parents[2] / "configs"

BILLIONS = {
    "7B": "7.322",
    "20B": "20.09",
    "internlm2_1.8B": "1.889",
    "internlm2_7B": "7.738",
    "internlm2_20B": "19.86",
    "internlm3_8B": "8.804",
    "llama2_7B": "6.738",
}


def load(name: str) -> Config:
    return Config.model_validate(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))


def num_parameters(name: str) -> int:
    return sum(param.numel for param in parameters(load(name).model))


@pytest.mark.parametrize(("name", "billions"), BILLIONS.items())
def test_parameter_counts_are_the_published_ones(name: str, billions: str) -> None:
    digits = len(billions.partition(".")[2])
    assert f"{num_parameters(name) / 1e9:.{digits}f}" == billions


def test_7b_has_the_size_that_internevo_logs() -> None:
    weights = 2 * 103168 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 65 * 4096
    biases = 32 * 4 * 4096
    assert (weights, num_parameters("7B")) == (7321423872, weights + biases)
    assert f"{2 * num_parameters('7B') / 2**20:.2f}" == "13965.51"  # MiB of bf16 in its memory log


@pytest.mark.parametrize(
    ("name", "rope_base"), [("7B", 1e4), ("internlm2_7B", 1e6), ("internlm3_8B", 5e7), ("llama2_7B", 1e4)]
)
def test_rope_bases_are_the_published_ones(name: str, rope_base: float) -> None:
    assert architecture(load(name).model).rope_base == rope_base


def test_7b_is_the_setting_of_the_published_table() -> None:
    config = load("7B")
    data = config.data
    assert (data.train, data.seq_len, data.micro_batch, data.grad_accum) == ("random", 2048, 2, 4)
    assert (config.model.dtype, config.zero.optim, config.optim.lr, config.run.steps) == ("bf16", "node", 1e-4, 50000)
    assert 8 * config.micro_batch_tokens * data.grad_accum == 131072


def test_7b_fits_24_gb_with_adapters_and_8_x_80_gb_whole() -> None:
    for name, gpus, limit in (("7B_lora", 1, 24e9), ("7B_sft", 8, 80e9)):
        config = load_config(CONFIGS / f"{name}.yaml")
        plan = make_plan(config, parameters(config.model, config.lora), Topology(gpus, gpus, "cuda"))
        assert plan.memory.total < 0.94 * limit, f"{name}: {plan.memory}"
        if name == "7B_lora":
            assert plan.memory.parameters > 14.6e9
            assert plan.memory.gradients + plan.memory.optimizer == pytest.approx(
                16 * plan.num_trained_params, rel=1e-3
            )


def test_the_demo_of_fine_tuning_has_the_shape_of_its_model() -> None:
    assert f"{num_parameters('sft_demo') / 1e6:.1f}" == "134.5"
