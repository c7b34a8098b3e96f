"""The loop's parts: metrics, sinks, the progress bar, what happens when memory runs out."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from internevo_engine.config.schema import LoraConfig, ModelConfig
from internevo_engine.engine import Engine, StepResult
from internevo_engine.loop import report, sinks
from internevo_engine.loop.metrics import Meter, as_line
from internevo_engine.run import main
from tests.conftest import Tiny

MODEL = ModelConfig(family="internlm", vocab=103168, layers=32, hidden=4096, heads=32, ffn=11008)
RESULT = StepResult(loss=2.5, grad_norm=0.7, lr=1e-4, tokens=131072, stop=False)


def measure(device: str):
    meter = Meter(MODEL, LoraConfig(), seq_len=2048, world=8, device_name=device)
    counts = {"step": 3, "tokens": 393216, "step_tokens": 131072, "squared_lengths": 8 * 2048**2, "skipped": 0}
    return meter.measure(RESULT, seconds=4.0, **counts)


def test_rates_are_per_rank_and_flops_come_in_both_countings():
    metrics = measure("NVIDIA A100-SXM4-80GB")
    assert metrics.tgs == 131072 / 8 / 4
    assert metrics.tflops_internevo == pytest.approx(4096 * 44.41e9 / 1e12, rel=1e-3)
    assert metrics.tflops < metrics.tflops_internevo
    assert metrics.mfu == pytest.approx(metrics.tflops / 312)
    assert metrics.step_ms == 4000


@pytest.mark.parametrize(
    ("device", "peak"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("Tesla T4", None)],
)
def test_mfu_is_null_where_the_peak_is_unknown(device, peak):
    metrics = measure(device)
    assert metrics.mfu == (None if peak is None else pytest.approx(metrics.tflops / peak))


def test_lines_are_aligned():
    lengths = {len(as_line(measure("cpu"), steps)) for steps in (100, 999)}
    assert len(lengths) == 1


def test_tensorboard_gets_every_number(tiny: Tiny):
    pytest.importorskip("tensorboard", reason="the extra [track] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main([tiny.config, "run.tensorboard=true"]) == 0
    events = EventAccumulator(str(tiny.run / "tb")).Reload()
    assert {"loss", "grad_norm", "lr", "tgs"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("lr")] == [1, 2, 3, 4, 5, 6]


def test_tensorboard_that_is_not_there_names_the_extra(tiny: Tiny, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main([tiny.config, "run.tensorboard=true"]) == 2
    assert "internevo-engine[track]" in capsys.readouterr().err
    assert not tiny.run.exists()


def test_out_of_memory_names_the_keys_to_change(tiny: Tiny, monkeypatch, capsys):
    def fail(*_arguments: object, **_keywords: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(Engine, "step", fail)
    assert main([tiny.config]) == 12
    error = capsys.readouterr().err
    assert error.startswith("error: rank 0: out of memory: CUDA out of memory. Tried to allocate 20.00 GiB.")
    assert "data.micro_batch (now 2" in error
    assert error.count("\n") == 1
    assert "torch.OutOfMemoryError" in (tiny.run / "log/rank0.log").read_text()


def test_a_terminal_shows_a_progress_bar(tiny: Tiny):
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "internevo_engine.run", tiny.config, "run.steps=40", "run.log_every=20"]
    environment = os.environ | {"TERM": "xterm", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # how a terminal says that the other side is closed
            break
        if not part:
            break
        shown += part
    assert process.wait(timeout=60) == 0
    assert b"\x1b" in shown
    assert b"/40" in shown
    assert "\x1b" not in (tiny.run / "log/rank0.log").read_text()


def test_a_sink_writes_whole_lines(tmp_path):
    sink = sinks.jsonl(tmp_path / "m.jsonl")
    sink(1, {"loss": 1.5, "mfu": None})
    sink(2, {"loss": 1.25, "mfu": None})
    assert (tmp_path / "m.jsonl").read_text() == '{"loss": 1.5, "mfu": null}\n{"loss": 1.25, "mfu": null}\n'


def test_a_sample_can_not_command_the_terminal():
    assert report.quote("a\x1b[2Jb\r\n\tc\x00", ">") == "> a\ufffd[2Jb\ufffd\n> \tc\ufffd"
