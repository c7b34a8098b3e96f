"""loop: Ctrl-C, SIGTERM, SIGUSR1 or a STOP file end a run after the current step, with a checkpoint; a second Ctrl-C
at once."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""What terminals and schedulers send; Slurm warns with SIGUSR1 (--signal)."""

ECHO_S = 2.0
"""A launcher may pass on a Ctrl-C that the terminal has delivered already; within this time it is the same one."""


class StopRequest:
    """Whether this rank was asked to stop, by a signal or by a file."""

    def __init__(self, file: Path | None) -> None:
        self.asked_at: float | None = None
        self._file = file

    def __bool__(self) -> bool:
        return self.asked_at is not None or (self._file is not None and self._file.exists())

    def ask(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if self.asked_at is not None and number == signal.SIGINT and now - self.asked_at > ECHO_S:
            raise KeyboardInterrupt
        self.asked_at = self.asked_at or now


@contextmanager
def stop_on_request(file: Path | None) -> Iterator[StopRequest]:
    """Within the block, signals and `file` (None: not on this rank) set the request; then the old handlers are back."""
    request = StopRequest(file)
    kept = {number: signal.signal(number, request.ask) for number in STOPPING}
    try:
        yield request
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
