"""python -m internevo_engine VERB: everything besides training (that is internevo_engine.run)."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from internevo_engine.config.load import load_config
from internevo_engine.errors import EngineError
from internevo_engine.program import Program
from internevo_engine.run import parse, topology_of


def _doctor(_arguments: Sequence[str]) -> int:
    from internevo_engine.runtime.doctor import report  # imports torch

    print(report())
    return 0


def _convert(arguments: Sequence[str]) -> int:
    from internevo_engine.interop.convert import convert  # imports torch

    return convert(arguments)


def _chat(arguments: Sequence[str]) -> int:
    from internevo_engine.serve.chat import chat  # imports torch

    return chat(arguments)


def _serve(arguments: Sequence[str]) -> int:
    from internevo_engine.serve.server import serve  # imports torch

    return serve(arguments)


def _eval(arguments: Sequence[str]) -> int:
    from internevo_engine.serve.evaluate import evaluate  # imports torch

    return evaluate(arguments)


def _data(arguments: Sequence[str]) -> int:
    from internevo_engine.data.commands import data  # imports numpy and sentencepiece

    return data(arguments)


def _plan(arguments: Sequence[str]) -> int:
    from internevo_engine.schedule.commands import plan

    return plan(arguments)


def _simulate(arguments: Sequence[str]) -> int:
    from internevo_engine.schedule.commands import simulate

    return simulate(arguments)


def _chaos(arguments: Sequence[str]) -> int:
    from internevo_engine.chaos.commands import chaos  # imports torch

    return chaos(arguments)


def _show(arguments: Sequence[str]) -> int:
    match arguments:
        case ["program", config, *rest]:
            print(_program(config, rest).text, end="")
            return 0
        case ["step", config, *rest]:
            from internevo_engine.schedule.report import describe

            print(describe(_program(config, rest)))
            return 0
        case ["diff", run_a, run_b]:
            from internevo_engine.loop.fingerprint import first_difference

            print(first_difference(Path(run_a), Path(run_b)))
            return 0
        case ["failure", run]:
            from internevo_engine.runtime.failure import show

            print(show(Path(run)))
            return 0
    print("usage: python -m internevo_engine show program|step CONFIG [--gpus N] [section.key=value ...]")
    print("       python -m internevo_engine show diff RUN_A RUN_B")
    print("       python -m internevo_engine show failure RUN")
    return 2


def _program(config: str, rest: Sequence[str]) -> Program:
    from internevo_engine.schedule.show import program_of  # imports torch

    arguments, overrides = parse([config, *rest, "--dry-run"])
    asked = load_config(config, overrides)
    return program_of(asked, topology_of(asked, arguments.gpus))


VERBS: Mapping[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "doctor": ("what this machine has, and how to mend what it lacks", _doctor),
    "convert": ("a model to Hugging Face, or from Hugging Face, InternEvo or GGUF", _convert),
    "data": ("tokens for training: prepare them, look at them, mix them", _data),
    "plan": ("the best plan for a cluster that need not be there, and why others fell", _plan),
    "simulate": (
        "what a step takes on such a cluster, how it scales, how well published runs fit",
        _simulate,
    ),
    "eval": ("held-out text in bits per byte, or tasks of lm-eval", _eval),
    "chat": ("a dialogue with a model, in the terminal or in a browser", _chat),
    "serve": ("a model behind OpenAI's HTTP interface", _serve),
    "chaos": ("break small runs on purpose, and judge how they end", _chaos),
    "show": ("the Program of a config, what its step costs, where two runs part, or why one failed", _show),
}


def main(argv: Sequence[str]) -> int:
    """Run one verb; returns the exit code."""
    if argv and argv[0] in VERBS:
        try:
            return VERBS[argv[0]][1](argv[1:])
        except EngineError as error:
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)
            return error.exit_code
    print("usage: python -m internevo_engine VERB\n")
    for name, (text, _) in VERBS.items():
        print(f"  {name:<10} {text}")
    print("\ntraining: python -m internevo_engine.run CONFIG")
    return 0 if argv and argv[0] in ("-h", "--help", "help") else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
