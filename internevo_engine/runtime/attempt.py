"""runtime: one attempt at a run: `launch.nproc` processes of this host, from their start until all have ended.

What the ranks share with their parent lies in memory files, which the kernel drops with the last process: a store in
which they meet, so that no port is opened; the board on which they watch each other; and for each rank its last words.
Nothing is left behind, whoever is killed.
"""

import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from internevo_engine._core import Board
from internevo_engine.errors import DONE, INTERNAL, INTERRUPTED, PREEMPTED, HangError, LostRankError
from internevo_engine.runtime.launch import Place
from internevo_engine.runtime.nursery import Nursery

ENDED_WELL = (DONE, PREEMPTED, INTERRUPTED)
NOT_THE_CAUSE = (None, *ENDED_WELL, LostRankError.exit_code, HangError.exit_code)
"""Codes of ranks that did not begin a failure; None: it runs."""
OWN_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)
"""Signals that a process gets for what its own code did."""
SHOW_STACKS = signal.SIGUSR2
"""Makes a rank write the Python stacks of its threads to its words, whoever holds the GIL."""
POLL_S = 0.02
LAST_WORDS_S = 0.2
"""For the other ranks to say what they saw and to end, before they are ended."""
WORDS_BYTES = 1 << 16


@dataclass(frozen=True)
class End:
    """How an attempt ended."""

    code: int
    """Exit code of the whole: the culprit's, never that of those who lost it."""
    culprit: int | None = None
    cause: str = ""


class Attempt:
    """Ranks that run, within a `with` block; in it `board` and `words` can be read at any time, also of dead ranks."""

    def __init__(self, nursery: Nursery, nproc: int, number: int, job: str) -> None:
        """Let the nursery start all ranks."""
        self.number = number
        self.codes: list[int | None] = [None] * nproc
        """Exit code of each rank, -N where signal N ended it; None: it runs, or had to be ended."""
        self._nursery = nursery
        self._pids: list[int] = []
        self._files = [os.memfd_create(f"internevo {name}") for name in ("store", "board", *map(str, range(nproc)))]
        self.board = Board(self._files[1], nproc)
        nursery.ask_for(
            [
                Place(rank, nproc, rank, nproc, rendezvous="0", attempt=number, board=1, words=2 + rank, job=job)
                for rank in range(nproc)
            ],
            self._files,
        )

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        while None in self.codes:
            self.send(signal.SIGKILL)  # which ends a stopped one too
            self._listen()
        for file in self._files:
            os.close(file)

    def send(self, number: int) -> None:
        """A signal for all that run; before they are born, for the nursery."""
        if not self._pids:
            self._nursery.send(number)
        for rank, pid in enumerate(self._pids):
            if self.codes[rank] is None:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def words(self, rank: int) -> str:
        """What the rank left: its last message, the Python stacks of a crash or a hang."""
        return os.pread(self._files[2 + rank], WORDS_BYTES, 0).decode(errors="replace")

    def wait(self) -> End:
        """Until all have ended, of themselves or because one failed."""
        while True:
            self._listen()
            failed = [rank for rank, code in enumerate(self.codes) if code not in (None, *ENDED_WELL)]
            if failed:
                return self._end(failed[0])
            if None not in self.codes:
                return End(max(code for code in self.codes if code is not None))

    def _listen(self) -> None:
        """A moment, for the news of the nursery."""
        message = self._nursery.hear(POLL_S)
        if message is None:
            return
        if not message:
            code = self._nursery.wait()
            self.codes = [code if known is None else known for known in self.codes]
        elif not self._pids:
            self._pids = json.loads(message)
        else:
            rank, code = json.loads(message)
            self.codes[rank] = code

    def _end(self, failed: int) -> End:
        """A rank failed: end the others, who read it on the board if they did not notice."""
        hanging = self._hanging()
        self.board.report_lost(failed if hanging is None else hanging)
        deadline = time.monotonic() + LAST_WORDS_S
        while None in self.codes and time.monotonic() < deadline:
            self._listen()
        return self._judge(failed)

    def _judge(self, failed: int) -> End:
        """The culprit ended for a reason of its own, or the watchdogs named it."""
        ranks = (failed, *range(len(self.codes)))
        own = next((rank for rank in ranks if self.codes[rank] not in NOT_THE_CAUSE), None)
        if own is not None:
            return self._died(own, self.codes[own] or INTERNAL)
        witness, hanging = self._witness(), self._hanging()
        if witness is not None:
            return End(HangError.exit_code, hanging, self._last_word(witness))
        return End(LostRankError.exit_code, None, self._last_word(failed))

    def _died(self, rank: int, code: int) -> End:
        if code > 0:
            return End(code, rank, self._last_word(rank))
        by = signal.Signals(-code)
        return End(
            INTERNAL if by in OWN_FAULTS else LostRankError.exit_code, rank, f"rank {rank} was ended by {by.name}"
        )

    def _witness(self) -> int | None:
        """The first rank whose watchdog named one that hangs."""
        verdicts = [self.board.read(rank)["verdict"] for rank in range(self.board.world)]
        return next((rank for rank, verdict in enumerate(verdicts) if verdict not in ("", "lost")), None)

    def _hanging(self) -> int | None:
        witness = self._witness()
        return None if witness is None else self.board.read(witness)["culprit"]

    def _last_word(self, rank: int) -> str:
        said = [line for line in self.words(rank).splitlines() if line.startswith("error: ")]
        return said[-1].removeprefix("error: ") if said else f"rank {rank} ended with code {self.codes[rank]}"
