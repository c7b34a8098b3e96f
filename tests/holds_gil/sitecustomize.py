"""For tests/test_restarts.py, by way of PYTHONPATH: rank 1 keeps the GIL as soon as the file HOLD is in its folder."""

import ctypes
import threading
import time
from pathlib import Path


def hold_the_gil() -> None:
    while not Path("HOLD").exists():
        time.sleep(0.02)
    ctypes.PyDLL(None).sleep(600)


if '"rank": 1' in Path("/proc/self/cmdline").read_text():
    threading.Thread(target=hold_the_gil, daemon=True).start()
