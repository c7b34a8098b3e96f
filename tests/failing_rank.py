"""A program for tests/runtime/test_supervise.py: joins like a rank of the engine, and fails as it is told."""

import argparse
import os
import signal
import sys
import time

import torch

from internevo_engine import run
from internevo_engine.errors import DataError
from internevo_engine.runtime.communicator import Communicator, joined
from internevo_engine.runtime.launch import Place


def fail_as_told(how: str) -> None:
    if how == "raise":
        raise DataError("shard 7 of the corpus is unreadable")
    if how == "bug":
        raise ZeroDivisionError("a fault of ours")
    if how == "abort":
        os.kill(os.getpid(), signal.SIGABRT)
    time.sleep(600)


def work(arguments: argparse.Namespace, _overrides: object, place: Place, _argv: object) -> int:
    with joined(place, "gloo"):
        communicator = Communicator(place, torch.device("cpu"), ())
        communicator.sum(torch.ones(4))
        if place.rank == 1:
            fail_as_told(arguments.config)
        communicator.sum(torch.ones(4))
    return 0


run._run = work
run.leave(run.main(sys.argv[1:]))
