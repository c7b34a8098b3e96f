"""One rank of one peer; rank 0 prints a line of JSON (measure.py: Measured).

python -m bench.peers ddp --steps 5
torchrun --nproc-per-node 2 -m bench.peers engine --zero 1/1/2
python -m bench.lab run --hosts 2 --rate 400mbit -- python -m bench.peers fsdp2 --size 25M
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields

from bench.peers.measure import joined_rank, measure
from bench.peers.table import PEERS
from bench.workload import SIZES, Settings
from internevo_engine.runtime.launch import ALONE, find_place


def main(argv: Sequence[str]) -> None:
    arguments = vars(_parser().parse_args(argv))
    name = arguments.pop("peer")
    place = find_place(None, os.environ) or ALONE
    with joined_rank(Settings(**arguments), place) as rank:
        measured = measure(name, rank)
    if place.rank == 0:
        print(measured.json())


def options(settings: Settings) -> list[str]:
    """The command line's words for settings other than the default."""
    words = []
    for field in fields(Settings):
        value = getattr(settings, field.name)
        if value != field.default:
            flag = f"--{field.name.replace('_', '-')}"
            words += ["--no-overlap"] if value is False else [flag, _spell(value)]
    return words


def _spell(value: object) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _parser() -> argparse.ArgumentParser:
    default = {field.name: field.default for field in fields(Settings)}
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--size", choices=SIZES, default=default["size"])
    for name in ("layers", "micro_batch", "accumulate", "steps", "warm_up"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default[name])
    engine = parser.add_argument_group("the engine's plan")
    engine.add_argument("--zero", type=_sizes, default=default["zero"], metavar="P/G/OS", help="group sizes: 1/1/2")
    engine.add_argument("--wire", choices=("fp32", "bf16"), default=default["wire"])
    engine.add_argument("--bucket-mb", type=float, default=default["bucket_mb"])
    engine.add_argument("--compile", choices=("inductor", "eager"), default=default["compile"])
    engine.add_argument("--no-overlap", dest="overlap", action="store_false")
    return parser


def _sizes(text: str) -> tuple[int, int, int]:
    param, grad, optim = map(int, text.split("/"))
    return param, grad, optim


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # a peer's own process groups may abort when Python ends
