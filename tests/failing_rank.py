"""A program for tests/runtime/test_supervise.py: joins like a rank of the engine, and fails as it is told."""

import os
import signal
import sys
import time

import torch

from internevo_engine import run
from internevo_engine.errors import DataError
from internevo_engine.runtime.communicator import Communicator, joined
from internevo_engine.runtime.launch import find_place


def fail_as_told(how: str) -> None:
    if how == "raise":
        raise DataError("shard 7 of the corpus is unreadable")
    if how == "bug":
        raise ZeroDivisionError("a fault of ours")
    if how == "abort":
        os.kill(os.getpid(), signal.SIGABRT)
    time.sleep(600)


def work(_arguments: object, _overrides: object, place: object, argv: list[str]) -> int:
    place = find_place(argv[argv.index("--join") + 1], {})
    assert place is not None
    with joined(place, "gloo"):
        communicator = Communicator(place, torch.device("cpu"), ())
        communicator.sum(torch.ones(4))
        if place.rank == 1:
            fail_as_told(argv[0])
        communicator.sum(torch.ones(4))
    return 0


run._run = work
run.parse = lambda argv: (type("Arguments", (), {"join": argv[argv.index("--join") + 1]})(), [])
code = run.main(sys.argv[1:])
sys.stderr.flush()
os._exit(code)
