"""loop: Ctrl-C and SIGTERM end a run after the current step, with everything written; a second Ctrl-C at once."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

ECHO_S = 2.0
"""A launcher may pass on a Ctrl-C that the terminal has delivered already; within this time it is the same one."""


class StopRequest:
    """Whether this rank was asked to stop."""

    def __init__(self) -> None:
        self.asked_at: float | None = None

    def __bool__(self) -> bool:
        return self.asked_at is not None

    def ask(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if self.asked_at is not None and number == signal.SIGINT and now - self.asked_at > ECHO_S:
            raise KeyboardInterrupt
        self.asked_at = self.asked_at or now


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Within the block, SIGINT and SIGTERM set the request; the old handlers come back afterwards."""
    request = StopRequest()
    kept = {number: signal.signal(number, request.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
