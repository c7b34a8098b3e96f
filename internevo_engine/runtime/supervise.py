"""runtime: `launch.nproc` ranks on this host, started and watched by a parent that never imports torch.

The ranks are the very same command with `--join rank/world@store`. They meet in a file store, so no port is opened.
One rank that fails ends all; the exit code is the culprit's, not that of those who lost it.
"""

import ctypes
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

from internevo_engine.errors import DONE, INTERRUPTED, PREEMPTED, LostRankError

ENDED_WELL = (DONE, PREEMPTED, INTERRUPTED)
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
POLL_S = 0.05
GRACE_S = 5.0
"""Time for the other ranks to say what they saw and to end, before they are ended."""


def supervise(command: Sequence[str], nproc: int) -> int:
    """Run `command --join r/n@store` once for every rank r; return the exit code of the whole."""
    with tempfile.TemporaryDirectory(prefix="internevo-") as folder:
        store = f"file://{Path(folder) / 'store'}"
        ranks = [
            subprocess.Popen(
                [*command, "--join", f"{rank}/{nproc}@{store}"],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # the terminal's Ctrl-C reaches the parent alone, who passes it on once
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - no threads here
            )
            for rank in range(nproc)
        ]
        try:
            with _signals_forwarded(ranks):
                failed = _wait_for_first_failure(ranks)
                if failed:
                    _end(ranks)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        return _judge([process.returncode for process in ranks], failed)


def _wait_for_first_failure(ranks: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Ranks that failed first; empty when all ended well."""
    while True:
        codes = [process.poll() for process in ranks]
        failed = [rank for rank, code in enumerate(codes) if code not in (None, *ENDED_WELL)]
        if failed or None not in codes:
            return failed
        time.sleep(POLL_S)


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for ask in (None, subprocess.Popen.terminate):
        deadline = time.monotonic() + GRACE_S
        for process in ranks:
            if ask is not None:
                ask(process)
        while time.monotonic() < deadline and any(process.poll() is None for process in ranks):
            time.sleep(POLL_S)


def _judge(codes: Sequence[int], failed: Sequence[int]) -> int:
    if not failed:
        return max(codes)
    for rank in failed:
        if codes[rank] < 0:
            name = signal.Signals(-codes[rank]).name
            print(f"error: rank {rank} was ended by {name}; its log is in the run folder", file=sys.stderr)
    causes = [code for code in codes if code > 0 and code not in (LostRankError.exit_code, *ENDED_WELL)]
    return causes[0] if causes else LostRankError.exit_code


@contextmanager
def _signals_forwarded(ranks: Sequence[subprocess.Popen[bytes]]):
    def forward(number: int, _frame: object) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    kept = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _die_with_parent() -> None:
    """Linux: the kernel ends this rank when the parent dies, however that happens."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
