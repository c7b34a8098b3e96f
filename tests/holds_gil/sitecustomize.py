"""For tests/test_restarts.py, by way of PYTHONPATH: rank 1 keeps the GIL as soon as the file HOLD is in its folder."""

import ctypes
import os
import threading
import time
from pathlib import Path


def hold_the_gil() -> None:
    while not Path("HOLD").exists():
        time.sleep(0.02)
    if Path("/proc/self/comm").read_text() == "rank 1\n":
        ctypes.PyDLL(None).sleep(600)


os.register_at_fork(after_in_child=threading.Thread(target=hold_the_gil, daemon=True).start)
