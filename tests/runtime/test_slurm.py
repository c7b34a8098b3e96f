"""A real Slurm: one controller and two nodes on this machine, without root and without a running service.

The nodes are named by loopback addresses. So the first host of the job's node list resolves on every machine, and the
ranks meet where they do on a cluster, with no MASTER_ADDR.
"""

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from internevo_engine.run import main
from tests.conftest import Tiny
from tests.test_run import COMMAND, environment, free_port, losses

PATH = f"{os.environ['PATH']}:/usr/sbin"  # where Debian keeps daemons; not on every user's PATH
MISSING = [name for name in ("slurmctld", "slurmd", "srun") if shutil.which(name, path=PATH) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} not found; apt-get install slurmctld slurmd slurm-client"),
]

NODES = ("127.0.0.1", "127.0.0.2")

# auth/none and cred/none: every process is this user's own, so munge isn't needed.
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
FirstJobId={first_job}
KillWait=1
StateSaveLocation={folder}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
PartitionName=all Nodes=ALL Default=YES
"""
NODE = "NodeName={name} NodeAddr=127.0.0.1 NodeHostname={host} Port={port} CPUs=1\n"


@dataclass(frozen=True)
class Slurm:
    """A running cluster, found by its commands through `slurm.conf`."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return environment(SLURM_CONF=str(self.folder / "slurm.conf"), PATH=PATH)

    def call(self, *command: str, seconds: float = 30) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=seconds
        )

    @contextmanager
    def daemon(self, *command: str) -> Iterator[None]:
        with (self.folder / f"{'_'.join(command)}.log").open("w") as log:
            process = subprocess.Popen(
                command,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # out of Ctrl-C's reach: jobs end first
            )
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)

    def wait_until(self, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 60
        while not done():
            if time.monotonic() > end:
                logs = [path.read_text()[-2000:] for path in sorted(self.folder.glob("*.log"))]
                raise TimeoutError("\n".join([f"Slurm: {what} not within a minute", *logs]))
            time.sleep(0.2)

    def is_ready(self) -> bool:
        return self.call("sinfo", "--noheader", "--Node", "--format=%T").stdout.split() == ["idle"] * len(NODES)

    def num_step_sockets(self) -> int:
        """One for each process, on each node, that watches over ranks; it would outlive the node's daemon."""
        return sum(path.is_socket() for node in NODES for path in (self.folder / node).iterdir())

    def end_jobs(self) -> None:
        """Jobs that a test left behind when it was stopped."""
        self.call("scancel", f"--user={os.getuid()}")
        self.wait_until(lambda: self.num_step_sockets() == 0, "an end of all jobs")


def write_config(folder: Path) -> None:
    host = socket.gethostname()
    config = CONFIG.format(
        folder=folder,
        host=host,
        user=pwd.getpwuid(os.getuid()).pw_name,
        port=free_port(),
        first_job=free_port(),  # it picks the ranks' port: two of these clusters at once must not start at the same one
    )
    nodes = [NODE.format(name=name, host=host, port=free_port()) for name in NODES]
    (folder / "slurm.conf").write_text(config + "".join(nodes))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))  # short: a socket's path in it has at most 107 characters
    write_config(slurm.folder)
    with ExitStack() as stack:
        stack.enter_context(slurm.daemon("slurmctld", "-D"))
        for node in NODES:
            stack.enter_context(slurm.daemon("slurmd", "-D", "-N", node))
        slurm.wait_until(slurm.is_ready, "two idle nodes")
        stack.callback(slurm.end_jobs)
        yield slurm


def srun(slurm: Slurm, tiny: Tiny, overrides: Sequence[str]) -> subprocess.CompletedProcess[str]:
    options = ["--nodes=2", "--ntasks=2", "--kill-on-bad-exit=1"]
    return slurm.call("srun", *options, *COMMAND, tiny.config, *overrides, seconds=180)


def test_one_rank_on_each_of_two_slurm_nodes_trains_what_one_rank_trains(slurm: Slurm, tiny: Tiny):
    main([tiny.config, "data.grad_accum=2"])
    two = tiny.folder / "two"
    result = srun(slurm, tiny, [f"run.dir={two}", "zero.optim=world"])
    assert result.returncode == 0, result.stderr
    assert "2 ranks = 2 hosts x 1 cpu" in (two / "plan.txt").read_text()
    assert losses(two) == pytest.approx(losses(tiny.run), rel=1e-5)


def test_a_failing_rank_speaks_first_and_slurm_names_it_and_ends_the_other(slurm: Slurm, tiny: Tiny):
    result = srun(slurm, tiny, [f"data.train={tiny.folder}/nowhere"])
    assert result.returncode != 0  # the highest of all ranks: 143 if Slurm had to end the other
    first = next(line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert first.startswith(f"error: rank 0: corpus '{tiny.folder}/nowhere' does not exist")
    assert "task 0: Exited with exit code 3" in result.stderr
