"""python -m internevo_engine VERB: everything besides training (that is internevo_engine.run)."""

import sys
from collections.abc import Callable, Mapping, Sequence


def _doctor(_arguments: Sequence[str]) -> int:
    from internevo_engine.runtime.doctor import report  # imports torch

    print(report())
    return 0


VERBS: Mapping[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "doctor": ("what this machine has, and how to mend what it lacks", _doctor),
}


def main(argv: Sequence[str]) -> int:
    """Run one verb; returns the exit code."""
    if argv and argv[0] in VERBS:
        return VERBS[argv[0]][1](argv[1:])
    print("usage: python -m internevo_engine VERB\n")
    for name, (text, _) in VERBS.items():
        print(f"  {name:<10} {text}")
    print("\ntraining: python -m internevo_engine.run CONFIG")
    return 0 if argv and argv[0] in ("-h", "--help", "help") else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
