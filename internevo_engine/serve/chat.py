"""serve: python -m internevo_engine chat MODEL: a dialogue in the terminal, or with --web in a browser.

Lines in, answers out, so it works in a pipe too. The model's words are shown, never obeyed, by the terminal.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from internevo_engine.errors import UsageError
from internevo_engine.loop.report import printable
from internevo_engine.serve.conversation import Conversation
from internevo_engine.serve.load import load_model
from internevo_engine.serve.sampling import Sampling
from internevo_engine.serve.web import open_page

HELP = """\
/reset        forget what was said
/system TEXT  what stands before the dialogue; without TEXT: nothing
/help         these lines
/quit         leave, as Ctrl-D does; Ctrl-C ends an answer"""


def chat(arguments: Sequence[str]) -> int:
    """The verb; returns the exit code.

    Raises:
        EngineError: the model can't be loaded, or a setting is out of range.
    """
    asked = _parser().parse_args(arguments)
    sampling = Sampling(asked.repetition_penalty, asked.temperature, asked.top_k, asked.top_p, asked.seed)
    model = load_model(asked.model, asked.device)
    if asked.web:
        return open_page(model, asked.port)
    conversation = Conversation(model, sampling, asked.max_tokens, asked.system)
    if sys.stdin.isatty():
        kind = "it answers" if model.prompt else "it has no chat marks, so it continues what you write"
        print(f"{model.name} ({model.origin}): {kind}; /help\n")
        _talk(conversation, _typed())
    else:
        _talk(conversation, (line.rstrip("\n") for line in sys.stdin))
    return 0


def _talk(conversation: Conversation, lines: Iterator[str]) -> None:
    for line in lines:
        match line.strip().split(maxsplit=1):
            case []:
                continue
            case ["/quit"]:
                return
            case ["/reset"]:
                conversation.turns = []
            case ["/system", *text]:
                conversation.system = "".join(text)
            case [word, *_] if word.startswith("/"):
                print(HELP)
            case _:
                _answer(conversation, line)


def _answer(conversation: Conversation, line: str) -> None:
    """Print the answer as it comes; Ctrl-C ends it."""
    answer = conversation.ask(line)
    try:
        for text in answer:
            print(printable(text), end="", flush=True)
    except UsageError as error:
        print(f"error: {error}", end="", file=sys.stderr)
    except KeyboardInterrupt:
        print(" ...", end="")
    print()


def _typed() -> Iterator[str]:
    """Lines from a person, with the terminal's editing and history; Ctrl-C drops the line, Ctrl-D ends."""
    import readline  # noqa: F401 - input() uses it once it is imported

    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m internevo_engine chat", description="Talk to a model.", epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", type=Path, metavar="MODEL", help="a run, an engine folder or a Hugging Face folder")
    parser.add_argument("--system", default="", metavar="TEXT", help="what stands before the dialogue")
    parser.add_argument("--max-tokens", type=int, default=512, metavar="N", help="of one answer (512)")
    parser.add_argument("--temperature", type=float, default=0.7, metavar="T", help="0: the likeliest token (0.7)")
    parser.add_argument("--top-k", type=int, default=50, metavar="K", help="of the K likeliest tokens; 0: all (50)")
    parser.add_argument("--top-p", type=float, default=0.95, metavar="P", help="of the likeliest that make P (0.95)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="1: none (1)")
    parser.add_argument("--seed", type=int, metavar="N", help="equal seeds give equal answers")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--web", action="store_true", help="a page in the browser instead (extra [chat])")
    parser.add_argument("--port", type=int, default=8501, metavar="N", help="of the page (8501)")
    return parser
