"""runtime: ranks that watch each other. Each says on a board what it is doing; threads in C++ look at the board.

    with watched(place) as watch:
        with watch.phase("load"): ...
        with watch.step(number): ...

Who is stopped, holds the GIL or takes another path is named within seconds, and everybody ends with HangError's code;
limits and rules are in csrc/runtime/watchdog.h and board.h. The board outlives its ranks: failure.py reads it.
"""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from internevo_engine._core import Board, Watchdog
from internevo_engine.errors import HangError, LostRankError
from internevo_engine.runtime.attempt import SHOW_STACKS
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.runtime.extension import load_extension
from internevo_engine.runtime.launch import Place

BEAT_S = 0.1
"""Between two signs that Python runs; far below the limit of any phase."""


class Watch:
    """What this rank says of itself."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.board = Board(place.board, place.world)
        self._phase = "absent"

    def enter(self, phase: str) -> None:
        """From now on the rank is in a phase of csrc/runtime/board.h."""
        self._phase = phase
        self.board.enter(self.place.rank, phase)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Within the block; then what was before."""
        before = self._phase
        self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Within the block all ranks do this step together; its time sets what patience they have with each other."""
        self.board.begin_step(self.place.rank, number)
        try:
            yield
        finally:
            self.enter(self._phase)


@contextmanager
def watched(place: Place) -> Iterator[Watch]:
    """Watch the other ranks and be watched; all ranks enter it together. A rank alone is not watched."""
    if place.world == 1:
        yield Watch(place)
        return
    communicator = Communicator(place, torch.device("cpu"), ())
    watch = Watch(_on_board(place, communicator))
    watch.enter("start")
    mirror = _mirror(watch.place, communicator)
    watchdog = _watchdog(watch)
    done = threading.Event()
    threading.Thread(target=_beat, args=(watch, done), name="beat", daemon=True).start()
    try:
        yield watch
    finally:
        watch.enter("gone")
        done.set()
        del mirror, watchdog  # which ends their threads


def _on_board(place: Place, communicator: Communicator) -> Place:
    """The place with its host's board: the one that its parent made, or a file whose name is gone when all have it."""
    if place.board >= 0:
        return place
    with tempfile.NamedTemporaryFile(prefix="internevo-board-") as own:
        names = communicator.agree("board", own.name)
        board = os.open(names[place.rank - place.local_rank], os.O_RDWR | os.O_CLOEXEC)
        communicator.agree("board", "open")
    return replace(place, board=board)


def _mirror(place: Place, communicator: Communicator) -> object:
    """In the first rank of each of several hosts: what shows their boards to each other (csrc/runtime/mirror.h)."""
    mirror = None
    if place.local_world < place.world and place.local_rank == 0:
        load_extension()
        group = communicator.group_names["optimizer", "all"]
        mirror = torch.classes.internevo.Mirror(group, place.board, place.world, place.rank, place.local_world)
    communicator.agree("mirror", "")
    return mirror


def _watchdog(watch: Watch) -> Watchdog:
    words = watch.place.words
    return Watchdog(
        watch.board,
        watch.place.rank,
        words=words,
        stacks=SHOW_STACKS if words >= 0 else 0,
        lost_code=LostRankError.exit_code,
        hang_code=HangError.exit_code,
    )


def _beat(watch: Watch, done: threading.Event) -> None:
    while not done.wait(BEAT_S):
        watch.board.beat(watch.place.rank)
