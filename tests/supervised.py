"""A run of several ranks, started by the command line as a user does it, for tests that hurt its ranks."""

import json
import os
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
        variables = {"PYTHONPATH": f"{python_path}:{ROOT}", "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*COMMAND, tiny.config, f"launch.nproc={nproc}", *options],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def until_step(self, number: int) -> None:
        """Wait for the line of this step."""
        assert self.process.stdout
        assert any(line.startswith(f"step {number:>2}/") for line in self.process.stdout), self.process.communicate()

    @property
    def pids(self) -> list[int]:
        """Of the ranks that run now, in their order."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return sorted(map(int, children), key=rank_of)

    def hurt(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.pids[rank], number)

    def end(self) -> tuple[int, str]:
        """Exit code and stderr."""
        _, errors = self.process.communicate(timeout=300)
        return self.process.returncode, errors

    @property
    def failure(self) -> dict[str, Any]:
        return json.loads((self.run / "failure.json").read_text())


def rank_of(pid: int) -> int:
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return json.loads(words[words.index("--join") + 1])["rank"]


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
