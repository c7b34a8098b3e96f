"""data: `python -m internevo_engine data prepare|inspect|mix`, the command line of this room. Imports no torch."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from internevo_engine.config.load import load_config
from internevo_engine.data.arrays import LARGEST_ID
from internevo_engine.data.chat import TEMPLATES
from internevo_engine.data.formats import TokenFile
from internevo_engine.data.inspection import describe, inspect
from internevo_engine.data.mixing import plan_of
from internevo_engine.data.shards import OUTPUTS, build
from internevo_engine.data.sources import Source, TokenFolder, Unready, open_entry
from internevo_engine.data.tokenizers import load_tokenizer
from internevo_engine.errors import DataError
from internevo_engine.units import format_bytes


def data(arguments: Sequence[str]) -> int:
    """Run one of the three; returns the exit code.

    Raises:
        EngineError: what was asked can't be done.
    """
    asked = _parser().parse_args(arguments)
    return asked.command(asked)


def _parser() -> ArgumentParser:
    parser = ArgumentParser("python -m internevo_engine data", description="Tokens for training, made and looked at.")
    verbs = parser.add_subparsers(required=True, metavar="prepare|inspect|mix")
    _add_prepare(verbs.add_parser("prepare", help="text, dialogues or other tokens to token folders; resumes"))
    _add_inspect(verbs.add_parser("inspect", help="documents, tokens, types, lengths, ids, samples, digest"))
    _add_mix(verbs.add_parser("mix", help="what a configuration takes from which source"))
    return parser


def _add_prepare(parser: ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make; it appears whole, at the end")
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="as data.train takes them")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="sentencepiece .model; needed for text")
    parser.add_argument("--chat", choices=TEMPLATES, help="template for records that are dialogues")
    parser.add_argument("--text-key", default="text", metavar="KEY", help="key of the text in records (text)")
    parser.add_argument("--format", choices=OUTPUTS, default="engine", help="what to write (engine)")
    parser.add_argument("--workers", type=int, default=cores, metavar="N", help="processes (all cores)")
    parser.add_argument("--shard-mb", type=float, default=64.0, metavar="MB", help="a process's share at a time (64)")
    parser.set_defaults(command=_prepare)


def _add_inspect(parser: ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="token folders, InternEvo folders, Megatron files")
    parser.add_argument("--vocab", type=int, metavar="N", help="count ids that are not below N")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="sentencepiece .model, to show samples as text")
    parser.add_argument("--samples", type=int, default=2, metavar="K", help="documents to show (2)")
    parser.set_defaults(command=_inspect)


def _add_mix(parser: ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="ranks (1)")
    parser.add_argument("--step", type=int, metavar="S", help="step up to which is counted (the last)")
    parser.set_defaults(command=_mix)


def _prepare(asked: Namespace) -> int:
    sources = _sources(asked.sources, asked.text_key, asked.chat)
    unready = [source for source in sources if not isinstance(source, TokenFolder)]
    _refuse(asked, sources, unready)
    tokenizer = load_tokenizer(asked.tokenizer, LARGEST_ID) if asked.tokenizer else None
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("prepare", total=sum(source.num_bytes for source in unready))
        build(
            unready, tokenizer, asked.out, output=asked.format, workers=asked.workers,
            shard_bytes=max(1, int(asked.shard_mb * 1e6)), progress=lambda num_bytes: bar.advance(task, num_bytes),
        )  # fmt: skip
    for source in unready:
        print(f"{source.name}: {format_bytes(source.num_bytes)}, type {source.type}")
    print(f"made {asked.out}; look at it: python -m internevo_engine data inspect {asked.out}")
    return 0


def _refuse(asked: Namespace, sources: Sequence[Source], unready: Sequence[Unready]) -> None:
    if len(unready) < len(sources):
        ready = next(source for source in sources if isinstance(source, TokenFolder))
        raise DataError(f"{ready.name} is a token folder already; name it in data.train, or inspect it")
    text = next((source.name for source in unready if source.needs_tokenizer), None)
    if text is not None and asked.tokenizer is None:
        raise DataError(f"{text} is text and needs a tokenizer; give --tokenizer FILE, a sentencepiece .model")
    if asked.workers < 1:
        raise DataError(f"--workers {asked.workers}: at least one process has to work")


def _inspect(asked: Namespace) -> int:
    tokenizer = load_tokenizer(asked.tokenizer, LARGEST_ID) if asked.tokenizer else None
    for source in _sources(asked.sources):
        found = inspect(source, vocab=asked.vocab, num_samples=asked.samples)
        print(describe(found, tokenizer, asked.vocab))
    return 0


def _mix(asked: Namespace) -> int:
    config = load_config(asked.config, asked.overrides)
    train = (config.data.train,) if isinstance(config.data.train, str) else config.data.train
    entries = [[_opened(source) for source in open_entry(name)] for name in train if name != "random"]
    if not entries:
        raise DataError("data.train=random has nothing to mix; name token folders")
    step = config.run.steps if asked.step is None else asked.step
    num_sequences = step * asked.gpus * config.data.micro_batch * config.data.grad_accum
    print(plan_of(config, entries, num_sequences=num_sequences, step=step))
    return 0


def _opened(source: Source) -> TokenFile:
    if isinstance(source, TokenFolder):
        return TokenFile.open(source.path, LARGEST_ID + 1)
    raise DataError(f"{source.name} is no token folder yet; make one: data prepare OUT {source.name} ...")


def _sources(names: Sequence[str], text_key: str = "text", chat: str | None = None) -> list[Source]:
    return [source for name in names for source in open_entry(name, text_key, chat)]
