"""Folders that are damaged or lie: a clear error that names the file, exit code 3, and nothing half-written."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from internevo_engine.__main__ import main
from internevo_engine.interop.export_hf import export
from tests.interop.folders import tiny, train, write_engine

Spoil = Callable[[Path], object]


def edit(name: str, **changes: object) -> Spoil:
    def spoil(folder: Path) -> None:
        values = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps(values))

    return spoil


def replace(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content)


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return spoil


def index(**weight_map: str) -> Spoil:
    return replace("model.safetensors.index.json", json.dumps({"weight_map": weight_map}).encode())


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_short(folder: Path) -> None:
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])


Q = "model.layers.0.self_attn.q_proj.weight"
HOSTILE: dict[str, tuple[Spoil, str]] = {
    "not JSON": (replace("config.json", b"{"), "config.json is not JSON"),
    "deep JSON": (replace("config.json", b"[" * 100_000), "config.json is not JSON"),
    "a list": (replace("config.json", b"[]"), "must hold a JSON object"),
    "binary": (replace("config.json", b"\xff\xfe\0"), "config.json is not JSON"),
    "unknown type": (edit("config.json", model_type="mamba"), "model_type is 'mamba'"),
    "no type": (edit("config.json", model_type=None), "model_type is None"),
    "negative": (edit("config.json", num_hidden_layers=-1), "num_hidden_layers"),
    "too many layers": (edit("config.json", num_hidden_layers=2**60), "num_hidden_layers"),
    "huge vocabulary": (edit("config.json", vocab_size=2**60), "vocab_size"),
    "text for a number": (edit("config.json", hidden_size="wide"), "hidden_size"),
    "heads that don't divide": (edit("config.json", num_attention_heads=5, head_dim=None), "not divisible by heads"),
    "another head size": (edit("config.json", head_dim=64), "head_dim is 64"),
    "another activation": (edit("config.json", hidden_act="gelu"), "hidden_act is gelu"),
    "biases in the MLP": (edit("config.json", mlp_bias=True), "mlp_bias is True"),
    "scaled RoPE": (edit("config.json", rope_scaling={"rope_type": "yarn", "factor": 4.0}), "RoPE scaling 'yarn'"),
    "RoPE of text": (edit("config.json", rope_scaling={"rope_type": "dynamic", "factor": "x"}), "rope_scaling.factor"),
    "eos above the vocabulary": (edit("config.json", eos_token_id=640), "token id 640"),
    "another shape": (tensors(lambda w: w.update({Q: torch.zeros(32, 31)})), r"another shape.*\[32, 31\].*\[32, 32\]"),
    "a missing tensor": (tensors(lambda w: w.pop(Q)), f"1 tensors missing: {Q}"),
    "an unknown tensor": (tensors(lambda w: w.update(other=torch.zeros(1))), "1 tensors unknown: other"),
    "integers": (tensors(lambda w: w.update({Q: w[Q].to(torch.int32)})), "dtype torch.int32"),
    "half a file": (cut_short, "not a whole safetensors file"),
    "a header of 2^60 bytes": (replace("model.safetensors", b"\0" * 7 + b"\x10"), "not a whole safetensors file"),
    "pickle": (only_pickle, "as pickle"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no .safetensors file"),
    "a missing shard": (index(a="model-1.safetensors"), "model-1.safetensors is missing"),
    "an index that leaves the folder": (index(a="../engine/model.safetensors"), "points out of the folder"),
    "an absolute index": (index(a="/etc/passwd"), "points out of the folder"),
    "an index of numbers": (replace("model.safetensors.index.json", b'{"weight_map": {"a": 1}}'), "weight_map"),
    "too many pieces": (replace("tokenizer.model", train(700)), "700 pieces"),
    "ids above the vocabulary": (edit("tokenizer.json", added_tokens=[{"id": 640}]), "token id 640"),
    "a tokenizer of another kind": (edit("tokenizer.json", model={"vocab": [["a", 0.0]]}), "no vocabulary by name"),
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "engine"
    write_engine(folder, tiny("llama"))
    return folder


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_by_name_and_nothing_is_left(tmp_path: Path, engine: Path, name: str, capsys) -> None:
    spoil, said = HOSTILE[name]
    export(engine, tmp_path / "hf")
    spoil(tmp_path / "hf")
    assert main(["convert", "engine", str(tmp_path / "hf"), str(tmp_path / "out")]) == 3
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(said, error), error
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
