"""A run of several ranks, started by the command line as a user does it, for tests that hurt its ranks."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import Tiny

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "internevo_engine.run"]


class Supervised:
    """The command, its ranks, and what it leaves. Temporary files go to a folder of its own."""

    def __init__(self, tiny: Tiny, *options: str, nproc: int = 2, python_path: Path = ROOT) -> None:
        self.run, self.temporary = tiny.run, tiny.folder / "temporary"
        self.temporary.mkdir(exist_ok=True)
        variables = {
            "PYTHONPATH": f"{python_path}:{ROOT}",
            "TMPDIR": str(self.temporary),
            "TORCHINDUCTOR_CACHE_DIR": str(tiny.folder / "inductor"),  # torch would make it in TMPDIR
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [*COMMAND, tiny.config, f"launch.nproc={nproc}", *options],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def until_step(self, number: int) -> None:
        """Wait for the line of this step, or of a later one."""
        while self.until_any_step() < number:
            pass

    def until_any_step(self) -> int:
        """Wait for the next line of a step; its number."""
        assert self.process.stdout
        for line in self.process.stdout:
            if found := re.match(r"step +(\d+)/", line):
                return int(found[1])
        raise AssertionError(self.process.communicate())

    @property
    def pids(self) -> list[int]:
        """Of the ranks that run now, in their order."""
        nursery = children(self.process.pid)
        return sorted(children(nursery[0]), key=name) if nursery else []

    def hurt(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.pids[rank], number)

    def end(self) -> tuple[int, str]:
        """Exit code and stderr."""
        _, errors = self.process.communicate(timeout=300)
        return self.process.returncode, errors

    @property
    def failure(self) -> dict[str, Any]:
        return json.loads((self.run / "failure.json").read_text())


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def name(pid: int) -> str:
    """Ranks are called 'rank 0', and so on."""
    return Path(f"/proc/{pid}/comm").read_text()


def is_running(pid: int) -> bool:
    """Not a zombie either."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def listening(pid: int) -> set[str]:
    """Addresses, in the kernel's hexadecimal spelling, on which a process listens for TCP."""
    sockets = {os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir() if file.is_symlink()}
    tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table]
    return {words[1].split(":")[0] for words in lines if words[3] == "0A" and f"socket:[{words[9]}]" in sockets}
