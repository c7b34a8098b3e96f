"""loop: loss.png, drawn from the run folder's own records."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure

from internevo_engine.loop.run_folder import read_jsonl


def draw_loss(folder: Path) -> None:
    """Training and held-out loss above, learning rate and gradient norm below; over the steps."""
    steps, valid = read_jsonl(folder / "metrics.jsonl"), read_jsonl(folder / "valid.jsonl")
    x = [record["step"] for record in steps]
    figure = Figure(figsize=(8, 6), layout="constrained")
    loss, lr = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    loss.plot(x, [record["loss"] for record in steps], linewidth=1, label="training")
    if valid:
        loss.plot([r["step"] for r in valid], [r["loss"] for r in valid], "o-", color="C3", label="held out")
    loss.set_ylabel("loss (nats per token)")
    loss.set_title(f"{folder.name}: {steps[-1]['step']} steps, {steps[-1]['tokens']:,} tokens")
    loss.grid(alpha=0.3)
    loss.legend()
    lr.plot(x, [record["lr"] for record in steps], color="C2")
    lr.set_ylabel("learning rate")
    lr.set_xlabel("step")
    lr.grid(alpha=0.3)
    norm = lr.twinx()
    norm.plot(x, [record["grad_norm"] for record in steps], color="C7", linewidth=0.7)
    norm.set_yscale("log")
    norm.set_ylabel("gradient norm", color="C7")
    figure.savefig(folder / "loss.png", dpi=120)
