"""Held-out tokens are scored as a whole and by type; masked ones are read and not scored."""

from pathlib import Path

import numpy as np
import pytest

from internevo_engine.data.internevo import write_internevo
from internevo_engine.loop.run_folder import read_jsonl
from internevo_engine.run import main
from tests.conftest import Tiny


def write_types(folder: Path, seed: int) -> str:
    """Two types: 'down' counts down and its first half is masked, 'up' counts up."""
    draw = np.random.default_rng(seed)
    for kind, step in (("down", -1), ("up", 1)):
        (folder / kind).mkdir(parents=True)
        samples = []
        for begin in draw.integers(50, 250, 40).tolist():
            ids = np.arange(begin, begin + 20 * step, step)
            samples.append(np.where((np.arange(20) < 10) & (kind == "down"), ~ids, ids))
        write_internevo(folder / kind / "data.bin", samples)
    return str(folder)


def test_internevo_folder_trains_and_is_validated_by_type(tiny: Tiny) -> None:
    train, valid = write_types(tiny.folder / "evo-train", 0), write_types(tiny.folder / "evo-valid", 1)
    overrides = [f"data.train={train}", f"data.valid={valid}", "data.tokenizer=null", "data.weights=[1]"]
    assert main([tiny.config, *overrides, "run.steps=60", "run.valid_every=30"]) == 0
    first, last = read_jsonl(tiny.run / "valid.jsonl")
    for record in (first, last):
        down, up = record["types"]["down"], record["types"]["up"]
        assert (down["tokens"], up["tokens"], record["tokens"]) == (40 * 10, 40 * 19, 40 * 29)
        assert record["loss"] == pytest.approx((down["loss"] * 10 + up["loss"] * 19) / 29)
        assert record["accuracy"] == pytest.approx((down["accuracy"] * 10 + up["accuracy"] * 19) / 29)
        assert record["bits_per_byte"] is None
    assert last["loss"] < first["loss"]
    said = (tiny.run / "log" / "rank0.log").read_text()
    assert "\n  down: loss " in said
    assert "copied" in said
