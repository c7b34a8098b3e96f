"""Hugging Face -> engine -> Hugging Face gives every tensor back, bit for bit, and the logits in between are theirs."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from internevo_engine.interop.engine_folder import open_engine
from internevo_engine.interop.export_hf import export
from internevo_engine.interop.import_engine import import_engine
from tests.interop.folders import SEQ_LEN, VOCAB, logits, read_engine, write_tokenizer

SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": SEQ_LEN, "rope_theta": 5e5,
    "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "initializer_range": 0.1,
}  # fmt: skip
TOKENS = torch.randint(VOCAB, (SEQ_LEN,), generator=torch.Generator().manual_seed(1))


def write_theirs(folder: Path, model_type: str, *, dtype: torch.dtype = torch.float32, **keys: object) -> Path:
    """A random model as transformers saves it."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(model_type, **SHAPE, **keys), attn_implementation="eager"
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder, max_shard_size="60KB")
    write_tokenizer(folder / "tokenizer.model")
    return folder


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("model_type", "keys", "family"),
    [
        ("llama", {}, "llama"),
        ("llama", {"tie_word_embeddings": True}, "llama"),
        ("llama", {"attention_bias": True}, "internlm"),
        ("internlm3", {}, "internlm3"),
        ("llama", {"dtype": torch.bfloat16}, "llama"),
    ],
)
def test_there_and_back_no_bit_is_lost(tmp_path: Path, model_type: str, keys: dict, family: str) -> None:
    theirs = write_theirs(tmp_path / "theirs", model_type, **keys)
    import_engine(theirs, tmp_path / "engine", shard_bytes=50_000)
    found = open_engine(tmp_path / "engine").config
    assert (found.model.family, found.model.rope_base, found.model.norm_eps) == (family, 5e5, 1e-6)
    export(tmp_path / "engine", tmp_path / "back")
    assert_same_bits(tensors_of(tmp_path / "back"), tensors_of(theirs))
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert config["model_type"] == model_type
    assert {key: config[key] for key in SHAPE if key in config} == {key: SHAPE[key] for key in SHAPE if key in config}


@pytest.mark.parametrize("keys", [{}, {"tie_word_embeddings": True}, {"attention_bias": True}])
def test_the_engine_computes_their_logits(tmp_path: Path, keys: dict) -> None:
    theirs = write_theirs(tmp_path / "theirs", "llama", **keys)
    import_engine(theirs, tmp_path / "engine")
    model = transformers.AutoModelForCausalLM.from_pretrained(theirs, attn_implementation="eager")
    with torch.no_grad():
        expected = model(TOKENS[None]).logits[0]
    torch.testing.assert_close(logits(read_engine(tmp_path / "engine"), TOKENS), expected, atol=1e-5, rtol=1e-5)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """InternLM2's wqkv, head by head: two queries, their key, their value; 4 and 2 heads of size 8."""
    rows = []
    for group in range(2):
        rows += [q[16 * group : 16 * group + 8], q[16 * group + 8 : 16 * group + 16]]
        rows += [k[8 * group : 8 * group + 8], v[8 * group : 8 * group + 8]]
    return torch.cat(rows)


def as_internlm2(llama: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a Llama under InternLM2's names, written out by hand."""
    found = {
        "model.tok_embeddings.weight": llama["model.embed_tokens.weight"],
        "model.norm.weight": llama["model.norm.weight"],
        "output.weight": llama["lm_head.weight"],
    }
    for i in range(2):
        old, new = f"model.layers.{i}", f"model.layers.{i}"
        found[f"{new}.attention.wqkv.weight"] = fused(
            *(llama[f"{old}.self_attn.{letter}_proj.weight"] for letter in "qkv")
        )
        found[f"{new}.attention.wo.weight"] = llama[f"{old}.self_attn.o_proj.weight"]
        found[f"{new}.feed_forward.w1.weight"] = llama[f"{old}.mlp.gate_proj.weight"]
        found[f"{new}.feed_forward.w2.weight"] = llama[f"{old}.mlp.down_proj.weight"]
        found[f"{new}.feed_forward.w3.weight"] = llama[f"{old}.mlp.up_proj.weight"]
        found[f"{new}.attention_norm.weight"] = llama[f"{old}.input_layernorm.weight"]
        found[f"{new}.ffn_norm.weight"] = llama[f"{old}.post_attention_layernorm.weight"]
    return found


def test_internlm2_s_fused_projection_comes_out_as_llama_s_three(tmp_path: Path) -> None:
    llama = write_theirs(tmp_path / "llama", "llama")
    folder = tmp_path / "internlm2"
    folder.mkdir()
    save_file(as_internlm2(tensors_of(llama)), folder / "model.safetensors")
    scaling = {"type": "dynamic", "factor": 2.0}
    config = {
        **SHAPE,
        "model_type": "internlm2",
        "bias": False,
        "rope_scaling": scaling,
        "auto_map": {"AutoModel": "x"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder / "tokenizer.model")
    import_engine(folder, tmp_path / "engine")
    found = open_engine(tmp_path / "engine").config.model
    assert (found.family, found.rope_trained_len, found.rope_factor) == ("internlm2", SEQ_LEN, 2.0)
    export(tmp_path / "engine", tmp_path / "back")
    assert_same_bits(tensors_of(tmp_path / "back"), tensors_of(llama))
    back = json.loads((tmp_path / "back/config.json").read_text())
    assert (back["rope_scaling"]["rope_type"], back["rope_scaling"]["factor"]) == ("dynamic", 2.0)


def test_tokenizer_files_are_carried_through_and_lose_their_code(tmp_path: Path) -> None:
    theirs = write_theirs(tmp_path / "theirs", "llama")
    (theirs / "tokenizer.model").unlink()
    (theirs / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 3}}, "added_tokens": []}))
    (theirs / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": "x"}, "chat_template": "t"})
    )
    import_engine(theirs, tmp_path / "engine")
    export(tmp_path / "engine", tmp_path / "back")
    assert (tmp_path / "back/tokenizer.json").read_bytes() == (theirs / "tokenizer.json").read_bytes()
    settings = json.loads((tmp_path / "back/tokenizer_config.json").read_text())
    assert settings == {"chat_template": "t", "tokenizer_class": "PreTrainedTokenizerFast"}
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


def test_half_precision_becomes_fp32_with_the_same_values(tmp_path: Path) -> None:
    theirs = write_theirs(tmp_path / "theirs", "llama", dtype=torch.float16)
    import_engine(theirs, tmp_path / "engine")
    export(tmp_path / "engine", tmp_path / "back")
    expected = {name: tensor.float() for name, tensor in tensors_of(theirs).items()}
    assert_same_bits(tensors_of(tmp_path / "back"), expected)
