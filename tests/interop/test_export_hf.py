"""What we export, transformers loads without code of ours, and it computes what we compute."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from internevo_engine.__main__ import main
from internevo_engine.errors import DataError, StorageError
from internevo_engine.interop.engine_folder import write_config
from internevo_engine.interop.export_hf import export
from internevo_engine.run import main as run
from tests.conftest import Tiny
from tests.interop.folders import SEQ_LEN, VOCAB, logits, read_engine, tiny, write_engine

TOKENS = torch.randint(VOCAB, (SEQ_LEN,), generator=torch.Generator().manual_seed(1))


def load(folder: Path) -> transformers.PreTrainedModel:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.parametrize(
    ("family", "keys", "loaded_as"),
    [
        ("internlm", {"kv_heads": 4}, "LlamaForCausalLM"),
        ("internlm2", {}, "LlamaForCausalLM"),
        ("internlm3", {"kv_heads": 1}, "LlamaForCausalLM"),  # transformers computes InternLM3 with Llama's class
        ("llama", {"norm_eps": 1e-6}, "LlamaForCausalLM"),
        ("llama", {"tie_embeddings": True}, "LlamaForCausalLM"),
        ("internlm2", {"norm_head": True}, "LlamaForCausalLM"),
        ("internlm2", {"norm_head": True, "tie_embeddings": True}, "LlamaForCausalLM"),
        ("internlm2", {"rope_trained_len": 16, "rope_factor": 2.0}, "LlamaForCausalLM"),
        ("internlm2", {"rope_trained_len": 64, "rope_factor": 2.0}, "LlamaForCausalLM"),
    ],
)
def test_transformers_computes_our_logits(tmp_path: Path, family: str, keys: dict, loaded_as: str) -> None:
    ours = write_engine(tmp_path / "engine", tiny(family, **keys))
    export(tmp_path / "engine", tmp_path / "hf")
    theirs = load(tmp_path / "hf")
    assert type(theirs).__name__ == loaded_as
    assert theirs.dtype == torch.float32
    with torch.no_grad():
        found = theirs(TOKENS[None]).logits[0]
    assert found.abs().max() > 0.1
    torch.testing.assert_close(found, logits(ours, TOKENS), atol=1e-5, rtol=1e-5)


def test_automodel_and_the_tokenizer_load_without_code(tmp_path: Path) -> None:
    write_engine(tmp_path / "engine", tiny("internlm2"), torch.bfloat16)
    export(tmp_path / "engine", tmp_path / "hf")
    assert transformers.AutoModel.from_pretrained(tmp_path / "hf").dtype == torch.bfloat16
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.decode(tokenizer("def f(x):  return 天")["input_ids"]) == "<s>def f(x):  return 天"
    asked = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == (
        "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    settings = transformers.GenerationConfig.from_pretrained(tmp_path / "hf")
    assert (settings.bos_token_id, settings.eos_token_id) == (1, [2])


def test_internlm_speaks_its_own_chat_format(tmp_path: Path) -> None:
    write_engine(tmp_path / "engine", tiny("internlm"))
    export(tmp_path / "engine", tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    asked = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "?"},
    ]
    assert tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == (
        "<s><|User|>:hi<eoh>\n<|Bot|>:yes<eoa>\n<|User|>:?<eoh>\n<|Bot|>:"
    )


def test_large_models_come_in_shards_with_an_index(tmp_path: Path) -> None:
    ours = write_engine(tmp_path / "engine", tiny("internlm2"))
    export(tmp_path / "engine", tmp_path / "hf", shard_bytes=40_000)
    index = json.loads((tmp_path / "hf/model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in (tmp_path / "hf").glob("*.safetensors"))
    assert len(shards) > 3
    assert sorted({*index["weight_map"].values()}) == shards
    assert index["metadata"]["total_size"] == sum(parameter.nbytes for parameter in ours.parameters())
    assert max((tmp_path / "hf" / name).stat().st_size for name in shards[1:-1]) < 45_000
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "hf")(TOKENS[None]).logits[0], logits(ours, TOKENS))


def test_a_run_is_exported_from_the_command_line(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([tiny.config]) == 0
    target = tiny.folder / "a model"
    assert main(["convert", "hf", str(tiny.run), str(target)]) == 0
    said = capsys.readouterr().out
    assert all(
        f"{command} '{target}'" in said for command in ("lmdeploy chat", "lmdeploy serve api_server", "vllm serve")
    )
    theirs, ours = load(target), read_engine(tiny.run)
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    tokens = tokenizer("eat 3 apples and 4 pears", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits[0], logits(ours, tokens[0]), atol=1e-5, rtol=1e-5)
    assert "library_name: transformers" in (target / "README.md").read_text()
    assert main(["convert", "hf", str(tiny.run), str(target)]) == 5
    assert "is there already" in capsys.readouterr().err


def test_the_flags_of_internevo_s_tools_are_understood(tmp_path: Path) -> None:
    write_engine(tmp_path / "engine", tiny("internlm"))
    model = (tmp_path / "engine/tokenizer.model").rename(tmp_path / "V7_sft.model")
    flags = ["--src_folder", str(tmp_path / "engine"), "--tgt_folder", str(tmp_path / "hf"), "--tokenizer", str(model)]
    assert main(["convert", "hf", *flags]) == 0
    assert (tmp_path / "hf/tokenizer.json").is_file()


def test_without_a_tokenizer_nothing_is_written(tmp_path: Path) -> None:
    write_engine(tmp_path / "engine", tiny("internlm2"))
    (tmp_path / "engine/tokenizer.model").unlink()
    with pytest.raises(DataError, match="--tokenizer"):
        export(tmp_path / "engine", tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_weights_of_another_model_are_noticed(tmp_path: Path) -> None:
    write_engine(tmp_path / "engine", tiny("internlm2"))
    write_config(tmp_path / "engine", tiny("internlm2", layers=3), SEQ_LEN)
    with pytest.raises(DataError, match=r"not those of its config.yaml, for example layers.2"):
        export(tmp_path / "engine", tmp_path / "hf")


def test_a_folder_that_is_there_is_not_touched(tmp_path: Path) -> None:
    write_engine(tmp_path / "engine", tiny("internlm2"))
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="is there already"):
        export(tmp_path / "engine", tmp_path / "hf")
    assert [path.name for path in (tmp_path / "hf").iterdir()] == ["mine.txt"]
