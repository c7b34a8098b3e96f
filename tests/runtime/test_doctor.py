"""The doctor lists what is there, and a command for each gap; machines are described, not needed."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from internevo_engine.errors import EngineError
from internevo_engine.runtime import doctor
from internevo_engine.runtime.machine import Gpu, Machine

LAPTOP = Machine(num_cpus=2, free_memory_bytes=8 * 10**9)


def test_a_laptop_is_ready_and_every_line_is_found_or_mended():
    lines = doctor.report(LAPTOP).splitlines()
    names = [line.split()[1] for line in lines if line.startswith(("ok", "gap"))]
    assert names == ["python", "torch", "device", "network", "attention", "compiler", "extension", "extras"]
    assert "2 CPU cores, 8 GB free memory" in lines[0]
    assert lines[-1] == "ready: trains on CPU"
    gaps = [i for i, line in enumerate(lines) if line.startswith("gap")]
    assert all(lines[i + 1].strip().startswith("to mend: ") for i in gaps)


def test_an_extension_that_does_not_load_is_a_gap_with_its_remedy(monkeypatch):
    def broken() -> None:
        raise EngineError("the native library is missing")

    monkeypatch.setattr(doctor, "load_extension", broken)
    report = doctor.report(LAPTOP)
    assert "gap  extension" in report
    assert "to mend: pip install ." in report
    assert report.endswith("not ready: mend the extension first")


def test_a_gpu_with_a_cpu_build_of_torch_is_a_gap(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(doctor.torch.version, "cuda", None)
    finding = doctor.check_torch(LAPTOP)
    assert finding.mend is not None
    assert "CUDA build" in finding.mend


@pytest.mark.parametrize(
    ("flash", "capability", "found"),
    [("2.8.3", (9, 0), "flash-attn 2.8.3"), (None, (8, 0), "torch varlen_attn"), (None, (7, 0), "slow on this GPU")],
)
def test_attention_follows_package_and_capability(monkeypatch, flash, capability, found):
    machine = Machine(8, 10**10, (Gpu("NVIDIA A100-SXM4-80GB", 80 * 10**9),))
    monkeypatch.setattr(doctor, "installed", lambda name: flash)
    monkeypatch.setattr(doctor.torch.cuda, "get_device_capability", lambda index: capability)
    assert found in doctor.check_attention(machine).found


def test_the_command_answers_in_seconds():
    command = [sys.executable, "-m", "internevo_engine", "doctor"]
    started = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert time.perf_counter() - started < 15
    assert "ready: trains on" in result.stdout
