"""serve: python -m internevo_engine eval MODEL: held-out text in bits per byte, or tasks of lm-eval.

A run's numbers are those of its valid.jsonl: the same packing, the same sums (loop/evaluate.py).
"""

import argparse
from collections.abc import Sequence
from math import exp
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from internevo_engine.data.corpora import TextCorpus
from internevo_engine.data.formats import TokenFile, write_tokens
from internevo_engine.data.packing import PackedCorpus
from internevo_engine.data.shards import write_source
from internevo_engine.data.sources import Source, TokenFolder, open_entry
from internevo_engine.errors import ConfigError, UsageError
from internevo_engine.loop.evaluate import Score, score_of
from internevo_engine.models.loss import token_scores
from internevo_engine.serve.load import LanguageModel, load_model

CONTEXT = 2048
"""Positions that a model sees at most, unless more are asked for: logits of a whole context are in memory at once."""


@torch.no_grad()
def held_out(model: LanguageModel, corpus: str, *, text_key: str = "text", context: int | None = None) -> Score:
    """The model's loss on every token of a corpus, in pieces of at most `context` positions.

    Args:
        corpus: what data.valid takes, one entry: text, token folders, tokens of other formats.
        context: None: CONTEXT, or what the model was made for where that is less.

    Raises:
        DataError: the corpus can't be read, or its tokens are not the model's.
        UsageError: `context` is beyond what the model was made for.
    """
    seq_len = min(CONTEXT, model.max_len) if context is None else context
    if not 1 <= seq_len <= model.max_len:
        raise UsageError(f"--context {context}: the model was made for 1 to {model.max_len} positions")
    sums = torch.zeros(3, dtype=torch.float64)
    with TemporaryDirectory() as scratch:
        sources = enumerate(open_entry(corpus, text_key))
        files = [_tokens(source, model, Path(scratch, str(number))) for number, source in sources]
        packed = PackedCorpus(files, seq_len=seq_len, micro_batch=1, seed=0)
        device = model.decoder.embedding.weight.device
        for batch in packed.evaluation_packs():
            sums += token_scores(model.decoder, batch.to(device)).cpu()
    return score_of(sums, packed.num_bytes)


def _tokens(source: Source, model: LanguageModel, path: Path) -> TokenFile:
    """A token folder as it is; anything else becomes one at `path`."""
    vocab = model.decoder.embedding.num_embeddings
    if isinstance(source, TokenFolder):
        return TokenFile.open(source.path, vocab)
    if isinstance(source, TextCorpus):
        _write_text(source, model, path, vocab)
    else:
        write_source(source, None, path, lambda writer: None)
    return TokenFile.open(path, vocab)


def _write_text(source: TextCorpus, model: LanguageModel, path: Path, vocab: int) -> None:
    with write_tokens(path, vocab, source=source.name) as writer:
        for document in source.documents():
            writer.add(np.array(model.vocabulary.document(document.text), np.int64), len(document.text.encode()))


def describe(score: Score) -> str:
    """A few lines for people."""
    lines = [
        ("tokens", f"{score.tokens:,}"),
        ("loss", f"{score.loss:.4f} nats a token"),
        ("perplexity", f"{exp(score.loss):.2f}"),
        ("accuracy", f"{score.accuracy:.1%} of tokens are the likeliest"),
    ]
    if score.bits_per_byte is not None:
        lines.append(("bits per byte", f"{score.bits_per_byte:.4f}"))
    return "\n".join(f"{name:<14} {value}" for name, value in lines)


def evaluate(arguments: Sequence[str]) -> int:
    """The verb; returns the exit code.

    Raises:
        EngineError: the model, the corpus or the tasks can't be used.
    """
    parser = argparse.ArgumentParser(prog="python -m internevo_engine eval", description="What a model is worth.")
    parser.add_argument("model", type=Path, metavar="MODEL", help="a run, an engine folder or a Hugging Face folder")
    parser.add_argument("corpora", nargs="*", metavar="CORPUS", help="held-out text or tokens, as data.valid takes it")
    parser.add_argument("--text-key", default="text", metavar="KEY", help="key of the text in records (text)")
    parser.add_argument("--context", type=int, metavar="N", help=f"positions at a time (at most {CONTEXT})")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="tasks of lm-eval (extra [eval])")
    parser.add_argument("--include-path", type=Path, metavar="DIR", help="where the tasks' YAML files are")
    parser.add_argument("--limit", type=int, metavar="N", help="examples of each task (all)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    asked = parser.parse_args(arguments)
    if not asked.corpora and not asked.tasks:
        parser.error("a CORPUS or --tasks is needed")
    model = load_model(asked.model, asked.device)
    for corpus in asked.corpora:
        score = held_out(model, corpus, text_key=asked.text_key, context=asked.context)
        print(f"{model.origin} on {corpus}\n{describe(score)}")
    if asked.tasks:
        print(_tasks(model, asked.tasks, asked.include_path, asked.limit))
    return 0


def _tasks(model: LanguageModel, tasks: Sequence[str], include_path: Path | None, limit: int | None) -> str:
    try:
        from internevo_engine.serve.harness import run_tasks  # imports lm_eval
    except ImportError as error:
        raise ConfigError(f"--tasks needs lm-eval ({error}): pip install 'internevo-engine[eval]'") from None
    return run_tasks(model, tasks, include_path, limit)
