"""bf16 parameters and activations with fp32 master weights learn what fp32 learns: the demo, half of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from internevo_engine.loop.run_folder import read_jsonl

ROOT = Path(__file__).parent.parent


def held_out_bits_per_byte(dtype: str, folder: Path) -> float:
    keys = [f"model.dtype={dtype}", "run.steps=300", "run.valid_every=0", f"run.dir={folder / dtype}"]
    command = [sys.executable, "-m", "internevo_engine.run", "configs/demo.yaml", *keys, f"data.cache={folder}/tokens"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return read_jsonl(folder / dtype / "valid.jsonl")[-1]["bits_per_byte"]


@pytest.mark.slow
def test_bf16_is_within_one_percent_of_fp32_after_300_steps(tmp_path: Path) -> None:
    fp32, bf16 = (held_out_bits_per_byte(dtype, tmp_path) for dtype in ("fp32", "bf16"))
    assert fp32 < 2.6  # of 8 for bytes that nobody knows: both have learned
    assert bf16 == pytest.approx(fp32, rel=0.01)
