"""loop: the last words of a run: what the model is worth, what it writes, where things lie, what to do next."""

import sys
from collections.abc import Iterator
from pathlib import Path

from internevo_engine.config.schema import Config
from internevo_engine.data.packing import MicroBatch
from internevo_engine.data.prepare import Prepared, gzip_bits_per_byte
from internevo_engine.engine import Engine
from internevo_engine.loop.run_folder import read_jsonl
from internevo_engine.loop.sample import continuation
from internevo_engine.units import format_seconds

PROMPT_LINES = 10
SAMPLE_TOKENS = 120


def last_words(folder: Path, config: Config, engine: Engine[MicroBatch], data: Prepared) -> str:
    """A few paragraphs for the screen, the log and RUN/report.txt."""
    return "\n\n".join(
        [
            *_worth(folder, data),
            *_sample(engine, data, config),
            _where(folder, config),
            f"next: {_next_command(config)}",
        ]
    )


def _worth(folder: Path, data: Prepared) -> Iterator[str]:
    """Bits per byte beside gzip, on the same held-out documents."""
    if not data.valid_text:
        return
    bits = read_jsonl(folder / "valid.jsonl")[-1]["bits_per_byte"]
    gzip = gzip_bits_per_byte(document for text in data.valid_text for document in text.documents())
    verdict = f"the model wins by {1 - bits / gzip:.1%}" if bits < gzip else "gzip wins: train longer"
    yield (
        f"held-out text, bits per byte (less is better)\n  this model  {bits:.3f}\n  gzip -9     {gzip:.3f}  "
        f"(file by file)\n  {verdict}"
    )


def _sample(engine: Engine[MicroBatch], data: Prepared, config: Config) -> Iterator[str]:
    """What the model writes after some lines from the middle of the first held-out document."""
    if not data.valid_text or data.tokenizer is None:
        return
    document = next(iter(data.valid_text[0].documents()))
    lines = document.text.splitlines(keepends=True)
    prompt = "".join(lines[len(lines) // 2 :][:PROMPT_LINES])
    written = continuation(
        engine.model,
        data.tokenizer,
        prompt,
        num_tokens=SAMPLE_TOKENS,
        seq_len=config.data.seq_len,
        seed=config.run.seed,
    )
    title = f"some lines of {document.name}, and what the model writes after them"
    yield f"{title}\n{quote(prompt, '|')}\n{quote(written, '>')}"


def _where(folder: Path, config: Config) -> str:
    steps = read_jsonl(folder / "metrics.jsonl")
    seconds = sum(record["step_ms"] for record in steps) / 1e3
    return (
        f"{config.run.steps} steps, {steps[-1]['tokens']:,} tokens, {format_seconds(seconds)} of training\n"
        f"weights  {folder}/final\nplot     {folder}/loss.png"
    )


def _next_command(config: Config) -> str:
    """A demo is followed by the reader's own text; anything else by a look at the plan for a cluster."""
    inside = Path(sys.executable).is_relative_to(Path.cwd())
    python = Path(sys.executable).relative_to(Path.cwd()) if inside else "python"
    run = f"{python} -m internevo_engine.run"
    if config.data.train == "python-stdlib":
        return f"{run} configs/demo.yaml data.train=FOLDER_OF_YOUR_TEXTS data.valid=null run.dir=runs/mine"
    return f"{run} configs/7B.yaml --dry-run --gpus 1024"


def quote(text: str, mark: str) -> str:
    """Lines with a mark."""
    return "\n".join(f"{mark} {line}" for line in printable(text).split("\n"))


def printable(text: str) -> str:
    """A model may write any byte; a terminal must not obey it."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
