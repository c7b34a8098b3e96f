"""Captured graphs are kept: found again by what they depend on, and no reason to stop where they can't be kept."""

from pathlib import Path

import pytest

from internevo_engine.config.inputs import ModelConfig
from internevo_engine.config.schema import Config, DataConfig, LoraConfig
from internevo_engine.schedule.captured import captured
from internevo_engine.schedule.show import capture_spec

MODEL = ModelConfig(family="llama", dtype="fp32", vocab=64, layers=2, hidden=32, heads=4, ffn=64)
PLAIN = Config(model=MODEL, data=DataConfig(seq_len=16, micro_batch=1))
ADAPTED = PLAIN.model_copy(update={"lora": LoraConfig(rank=2)})


def test_a_kept_graph_is_that_of_its_own_model_and_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        assert captured(PLAIN, "fp32") == capture_spec(PLAIN, "fp32")
        assert captured(ADAPTED, "fp32") == capture_spec(ADAPTED, "fp32")
    assert len(list(tmp_path.rglob("graphs/*"))) == 2


def test_a_folder_that_can_not_be_written_is_said_and_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert captured(PLAIN, "fp32") == capture_spec(PLAIN, "fp32")
    assert "can't be kept" in capsys.readouterr().err
