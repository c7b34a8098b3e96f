"""Adapters in peft's format, and merged: what transformers computes is what the engine computed."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from internevo_engine.__main__ import main
from internevo_engine.config.schema import LoraConfig
from internevo_engine.interop.adapters import Base, write_adapters
from internevo_engine.models.decoder import Decoder
from internevo_engine.models.families import is_adapter
from internevo_engine.models.initialize import build
from tests.interop.folders import CPU, SEQ_LEN, decoder_of, logits, tiny, weights_of, write_engine

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA = LoraConfig(rank=3, alpha=6.0, targets=ALL)
TOKENS = torch.arange(SEQ_LEN)


def write_both(folder: Path, family: str, lora: LoraConfig = LORA) -> Decoder:
    """base/ and adapters/, and the adapted model that they make up."""
    model = tiny(family)
    write_engine(folder / "base", model)
    adapted = build(model, SEQ_LEN, torch.float32, CPU, seed=5, lora=lora)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if is_adapter(name):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)
            else:
                parameter.copy_(weights_of(decoder_of(model))[name])
    (folder / "adapters").mkdir()
    write_adapters(folder / "adapters", weights_of(adapted), model, lora, Base.of(folder / "base"))
    return adapted


@pytest.mark.parametrize("family", ["internlm", "llama", "internlm3"])
def test_transformers_computes_with_merged_adapters_what_the_engine_does_without_merging(
    tmp_path: Path, family: str
) -> None:
    adapted = write_both(tmp_path, family)
    source, adapters, target = (str(tmp_path / name) for name in ("base", "adapters", "hf"))
    assert main(["convert", "hf", source, target, "--adapters", adapters]) == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(target, attn_implementation="eager")
    with torch.no_grad():
        found = theirs(TOKENS[None]).logits[0]
    torch.testing.assert_close(found, logits(adapted, TOKENS), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, logits(decoder_of(tiny(family)), TOKENS), atol=1e-2)


def test_names_are_those_of_peft_on_a_llama(tmp_path: Path) -> None:
    write_both(tmp_path, "llama")
    found = {name: tuple(t.shape) for name, t in load_file(tmp_path / "adapters/adapter_model.safetensors").items()}
    assert len(found) == 2 * 2 * len(ALL)
    prefix = "base_model.model.model.layers.1"
    assert found[f"{prefix}.self_attn.k_proj.lora_A.weight"] == (3, 32)
    assert found[f"{prefix}.self_attn.k_proj.lora_B.weight"] == (16, 3)
    assert found[f"{prefix}.mlp.down_proj.lora_A.weight"] == (3, 48)
    settings = json.loads((tmp_path / "adapters/adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", 3, 6.0)
    assert settings["target_modules"] == list(ALL)


def test_peft_itself_loads_them(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="pip install peft")
    adapted = write_both(tmp_path, "llama")
    assert main(["convert", "hf", str(tmp_path / "base"), str(tmp_path / "hf")]) == 0
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager")
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapters"))
    with torch.no_grad():
        found = loaded(TOKENS[None]).logits[0]
    torch.testing.assert_close(found, logits(adapted, TOKENS), atol=1e-5, rtol=1e-5)
    loaded.save_pretrained(str(tmp_path / "saved"))
    back = ["convert", "hf", str(tmp_path / "base"), str(tmp_path / "merged"), "--adapters", str(tmp_path / "saved")]
    assert main(back) == 0
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager")
    with torch.no_grad():
        torch.testing.assert_close(merged(TOKENS[None]).logits[0], found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"target_modules": ["wqkv"]}, "target_modules.0='wqkv'"),
        ({"r": 0}, "r=0"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern="),
        ({"r": 4}, "holds other adapters than the model has"),
    ],
)
def test_adapters_that_the_engine_does_not_compute_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], said: str
) -> None:
    write_both(tmp_path, "llama")
    path = tmp_path / "adapters/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    command = ["convert", "hf", str(tmp_path / "base"), str(tmp_path / "hf"), "--adapters", str(path.parent)]
    assert main(command) == 3
    assert said in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


def test_a_missing_adapter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_both(tmp_path, "llama")
    path = tmp_path / "adapters/adapter_model.safetensors"
    tensors = load_file(path)
    del tensors["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"]
    save_file(tensors, path)
    command = ["convert", "hf", str(tmp_path / "base"), str(tmp_path / "hf"), "--adapters", str(path.parent)]
    assert main(command) == 3
    assert "layers.0.mlp.up_proj.lora_A" in capsys.readouterr().err
