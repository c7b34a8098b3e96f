"""Runs that begin with weights: whole or with adapters, and what the command line leaves of them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from internevo_engine.__main__ import main as other_verbs
from internevo_engine.config.load import load_config
from internevo_engine.data.formats import write_tokens
from internevo_engine.interop.engine_folder import open_engine
from internevo_engine.run import main
from tests.interop.folders import tiny, write_engine

ROOT = Path(__file__).parents[2]
CONFIG = """\
model: {family: llama, vocab: 640, layers: 2, hidden: 32, heads: 4, kv_heads: 2, ffn: 48}
data: {train: tokens, valid: tokens, seq_len: 32, micro_batch: 2}
optim: {lr: 1e-2, schedule: constant, warmup_ratio: 0.0, weight_decay: 0.0}
graph: {compile: eager}
run: {dir: runs/tuned, steps: 6, init: base}
"""
ADAPTED = ["lora.rank=4", "lora.targets=[q_proj, v_proj, down_proj]"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, a token folder of questions and answers, and a config."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write_engine(tmp_path / "base", tiny("llama"))
    write_dialogues(tmp_path / "tokens")
    (tmp_path / "tuned.yaml").write_text(CONFIG)
    return tmp_path


def write_dialogues(path: Path, *, last: int = 7, answer: int = 0) -> None:
    """Twenty documents: read but not counted, except for an answer of two tokens before the last."""
    with write_tokens(path, 640, source="test", masked=True) as writer:
        for n in range(20):
            writer.add(np.array([~1, ~(n + 30), ~4, 200 + n + answer, 6, ~last]), 0)


def final_weights(run: str = "runs/tuned") -> dict[str, torch.Tensor]:
    with (opened := open_engine(Path(run))).tensors as tensors:
        return {name: tensors.read(name) for name in opened.tensors.shapes}


def losses(run: str) -> list[float]:
    return [json.loads(line)["loss"] for line in Path(run, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("source", ["engine", "hf"])
def test_a_run_begins_with_the_weights_of_a_folder_under_any_plan(folder: Path, source: str) -> None:
    expected = final_weights("base")
    init = "base"
    if source == "hf":
        assert other_verbs(["convert", "hf", "base", "hf"]) == 0
        init = "hf"
    keys = [f"run.init={init}", "optim.init_steps=1", "run.steps=1", "zero.param=2", "zero.grad=2", "zero.optim=2"]
    assert main(["tuned.yaml", *keys, "launch.nproc=2"]) == 0
    found = final_weights()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        (["run.init=nowhere"], 3, "run.init=nowhere: no such file or folder"),
        (["run.init=tokens"], 3, "tokens is none of what the engine reads"),
        (["model.layers=3"], 2, "run.init=base holds another model .*layers is 2 there and 3 in the config"),
        (["model.family=internlm"], 2, "qkv_bias is False there and True in the config"),
        ([*ADAPTED, "run.init=null"], 2, "lora.rank: adapters stand beside weights that are there"),
        (["lora.targets=[wq]"], 2, "lora.targets: .*q_proj"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    folder: Path, capfd: pytest.CaptureFixture[str], keys: list[str], code: int, said: str
) -> None:
    assert main(["tuned.yaml", *keys]) == code
    assert re.search(said, capfd.readouterr().err)


def test_a_label_that_is_not_counted_changes_no_bit(folder: Path) -> None:
    write_dialogues(folder / "other-last", last=8)
    write_dialogues(folder / "other-answer", answer=1)
    prints = {}
    for name in ("tokens", "other-last", "other-answer"):
        assert main(["tuned.yaml", f"data.train={name}", f"run.dir=runs/{name}"]) == 0
        prints[name] = Path("runs", name, "fingerprint.jsonl").read_text()
    assert prints["tokens"] == prints["other-last"]
    assert prints["tokens"] != prints["other-answer"]


def test_adapters_learn_beside_a_base_that_stays(folder: Path) -> None:
    assert main(["tuned.yaml", *ADAPTED]) == 0
    assert losses("runs/tuned")[-1] < losses("runs/tuned")[0]
    names = {path.name for path in Path("runs/tuned/final").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "base.json", "config.yaml"} == names
    saved = load_file(Path("runs/tuned/checkpoints/step-6/rank-00000.safetensors"))
    assert all(".lora_" in name for name in saved)
    base, merged = final_weights("base"), final_weights()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {f"layers.{i}.{m}.weight" for i in (0, 1) for m in ("attention.wqkv", "feed_forward.w2")}
    keys = slice(32, 48)
    wqkv = "layers.0.attention.wqkv.weight"
    assert torch.equal(base[wqkv][keys], merged[wqkv][keys]), "k_proj is no target"


def test_a_run_with_adapters_goes_on_with_the_same_bits_beside_the_same_base_only(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["tuned.yaml", *ADAPTED, "run.dir=runs/whole"]) == 0
    assert main(["tuned.yaml", *ADAPTED, "run.steps=3"]) == 0
    (folder / "base").rename(folder / "kept")
    write_engine(folder / "base", tiny("llama"))
    (folder / "base/model.safetensors").write_bytes(_flipped((folder / "base/model.safetensors").read_bytes()))
    assert main(["tuned.yaml", *ADAPTED]) == 3
    assert "the checkpoint's adapters were trained beside" in capfd.readouterr().err
    (folder / "base").rename(folder / "wrong")
    (folder / "kept").rename(folder / "base")
    assert main(["tuned.yaml", *ADAPTED]) == 0
    whole, tuned = (Path(f"runs/{name}/fingerprint.jsonl").read_text() for name in ("whole", "tuned"))
    assert whole == tuned


def _flipped(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


def test_adapters_begin_where_others_ended(folder: Path) -> None:
    assert main(["tuned.yaml", *ADAPTED]) == 0
    keys = [*ADAPTED, "lora.init=runs/tuned/final", "optim.init_steps=1", "run.steps=1", "run.dir=runs/again"]
    assert main(["tuned.yaml", *keys]) == 0
    first, again = (load_file(f"runs/{name}/final/adapter_model.safetensors") for name in ("tuned", "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_finished_config_of_adapters_reads_back(folder: Path) -> None:
    assert main(["tuned.yaml", *ADAPTED, "run.steps=1"]) == 0
    assert load_config("runs/tuned/final/config.yaml").lora.rank == 4
