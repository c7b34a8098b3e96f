import subprocess
import sys

import pytest
import torch

from internevo_engine.config.schema import ModelConfig
from internevo_engine.models.decoder import Decoder
from internevo_engine.models.families import FAMILIES, architecture, parameters
from internevo_engine.plan.params import Param


def tiny(family: str, **keys: object) -> ModelConfig:
    shape = {"vocab": 97, "layers": 3, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 40}
    return ModelConfig.model_validate({"family": family, **shape, **keys})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_parameter_table_is_the_torch_module(family: str, kv_heads: int, tied: bool) -> None:
    model = tiny(family, kv_heads=kv_heads, tie_embeddings=tied)
    with torch.device("meta"):
        decoder = Decoder(model, seq_len=8)
    found = [(name, tuple(parameter.shape)) for name, parameter in decoder.named_parameters()]
    assert found == [(param.name, param.shape) for param in parameters(model)]


def test_layers_number_the_forward_pass() -> None:
    table = parameters(tiny("internlm"))
    assert [param.layer for param in table] == sorted(param.layer for param in table)
    assert table[0] == Param("embedding.weight", (97, 32), 0)
    assert table[-1] == Param("head.weight", (97, 32), 4)
    assert all(param.layer == int(param.name.split(".")[1]) + 1 for param in table if param.name.startswith("layers."))


def test_only_internlm_v1_has_biases() -> None:
    with_biases = {family for family in FAMILIES if any("bias" in param.name for param in parameters(tiny(family)))}
    assert with_biases == {"internlm"}


@pytest.mark.parametrize(
    ("key", "value"), [("rope_base", 5e5), ("norm_eps", 1e-6), ("init_std", 0.01), ("scaled_init", False)]
)
def test_a_config_key_overrides_the_family(key: str, value: float) -> None:
    assert getattr(architecture(tiny("internlm")), key) == getattr(FAMILIES["internlm"], key) != value
    assert getattr(architecture(tiny("internlm", **{key: value})), key) == value


def test_dynamic_ntk_grows_the_base_beyond_the_trained_length() -> None:
    arch = architecture(tiny("internlm", hidden=512, rope_trained_len=2048, rope_factor=2.0))
    assert arch.head_dim == 128
    assert arch.rope_base_at(1024) == arch.rope_base_at(2048) == 1e4
    assert arch.rope_base_at(4096) == pytest.approx(1e4 * 3 ** (128 / 126))
    assert arch.rope_base_at(4096) == pytest.approx(30527.7, abs=0.1)


def test_without_a_trained_length_the_base_never_changes() -> None:
    assert architecture(tiny("internlm2", rope_factor=2.0)).rope_base_at(10**6) == 1e6


def test_tables_and_flops_need_no_torch() -> None:
    code = (
        "import sys, internevo_engine.models.families, internevo_engine.models.flops; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
