"""interop: python -m internevo_engine convert hf|engine SOURCE TARGET: models out and in, from the command line."""

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from internevo_engine.config.load import load_config
from internevo_engine.interop.export_hf import export
from internevo_engine.interop.import_engine import import_engine
from internevo_engine.interop.sources import Hints
from internevo_engine.units import format_count

NEXT = """\
chat:         python -m internevo_engine chat {path}
transformers: python -c {code}
LMDeploy:     lmdeploy chat {path}
              lmdeploy serve api_server {path}
vLLM:         vllm serve {path}
LMDeploy and vLLM need a GPU; these lines follow their documentation and are not part of our tests."""


def convert(arguments: Sequence[str]) -> int:
    """The verb; returns the exit code.

    Raises:
        EngineError: see export_hf.export and import_engine.import_engine.
    """
    parser = _parser()
    asked = parser.parse_args(arguments)
    source, target = asked.source or asked.src_folder, asked.target or asked.tgt_folder
    if source is None or target is None:
        parser.error("SOURCE and TARGET are needed")
    {"hf": _to_hf, "engine": _to_engine}[asked.to](source, target, asked)
    return 0


def _to_hf(source: Path, target: Path, asked: argparse.Namespace) -> None:
    num_params = export(source, target, tokenizer=asked.tokenizer, adapters=asked.adapters)
    print(f"wrote {target}, {format_count(num_params)} parameters; to use it:")
    code = f'from transformers import pipeline; print(pipeline("text-generation", {json.dumps(str(target))})("Once"))'
    print(NEXT.format(code=shlex.quote(code), path=shlex.quote(str(target))))


def _to_engine(source: Path, target: Path, asked: argparse.Namespace) -> None:
    config = load_config(asked.config) if asked.config else None
    hints = Hints(config, asked.tokenizer, qk_interleaved=asked.qk_interleaved, w2=asked.w2)
    print(f"wrote {target}, {format_count(import_engine(source, target, hints))} parameters")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m internevo_engine convert", description="Models out and in.")
    verbs = parser.add_subparsers(dest="to", required=True)
    hf = verbs.add_parser("hf", help="a run or an engine folder to a Hugging Face folder")
    engine = verbs.add_parser(
        "engine", help="a Hugging Face folder, InternEvo checkpoint or GGUF file to an engine folder"
    )
    for verb in (hf, engine):
        verb.add_argument("source", type=Path, nargs="?", metavar="SOURCE")
        verb.add_argument("target", type=Path, nargs="?", metavar="TARGET", help="a folder that is not there yet")
        verb.add_argument("--src_folder", type=Path, metavar="SOURCE", help="the same, as InternEvo's tools call it")
        verb.add_argument("--tgt_folder", type=Path, metavar="TARGET", help="the same, as InternEvo's tools call it")
        verb.add_argument("--tokenizer", type=Path, metavar="FILE", help="a sentencepiece .model file to use")
    hf.add_argument("--adapters", type=Path, metavar="FOLDER", help="adapters in peft's format, to be merged in")
    engine.add_argument("--config", metavar="YAML", help="what an InternEvo checkpoint holds: configs/7B.yaml, say")
    engine.add_argument("--qk_interleaved", action="store_true", help="trained with model.qk_interleaved=True")
    engine.add_argument("--w2", choices=("up", "down"), help="what w2 does, where its shape doesn't tell")
    return parser
