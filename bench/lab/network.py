"""An emulated cluster for real: what layout.py wrote down is run, measured, read out and removed. Linux, as root.

Hands on a network that stands while a `with` block runs, whatever ends the block. A lab whose process was killed leaves
its namespaces behind; the next lab of that name removes them. A lock keeps two labs of one name apart.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.lab import line_rate
from bench.lab.layout import INTERFACE, Command, Lab, building, inside, namespace_prefix
from internevo_engine.errors import ConfigError, EngineError

TOOLS = {"ip": "iproute2", "tc": "iproute2", "setpriv": "util-linux"}
"""Commands, and the Debian packages that have them."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that passed a host's interface, headers included."""

    sent_bytes: int
    received_bytes: int

    def __sub__(self, earlier: "Traffic") -> "Traffic":
        return Traffic(self.sent_bytes - earlier.sent_bytes, self.received_bytes - earlier.received_bytes)


def missing() -> str | None:
    """What this machine lacks for a lab, in words; None: nothing."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    lacking = [f"{tool} ({package})" for tool, package in TOOLS.items() if not shutil.which(tool)]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    probe = f"ie-probe{os.getpid()}"  # root in a container is not always allowed to
    try:
        run([("ip", "netns", "add", probe), ("ip", "netns", "delete", probe)])
    except EngineError as error:
        return f"root with CAP_SYS_ADMIN and CAP_NET_ADMIN is needed: {error}"
    return None


@contextmanager
def network(lab: Lab) -> Iterator[None]:
    """The lab's network stands inside the block. Processes that are still in it afterwards are killed.

    Raises:
        ConfigError: this machine can't have a lab, or one of this name is running.
    """
    if lack := missing():
        raise ConfigError(f"the lab needs Linux, root, ip and tc; here: {lack}")
    with _locked(lab.name):
        remove(lab.name)
        try:
            run(building(lab))
            yield
        finally:
            remove(lab.name)


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """The kernel drops the lock when its holder ends, however that happens."""
    path = Path("/run/lock" if Path("/run/lock").is_dir() else "/tmp", f"{namespace_prefix(name)}lab")
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"a lab called {name} is running; choose another name with --lab") from None
        yield


def run(commands: Sequence[Command]) -> list[str]:
    """Run one after the other; returns what they printed.

    Raises:
        EngineError: one failed.
    """
    outputs = []
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EngineError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
        outputs.append(done.stdout)
    return outputs


def namespaces(name: str) -> list[str]:
    """Those of a lab that exist now."""
    entries = json.loads(run([("ip", "-json", "netns", "list")])[0] or "[]")
    return [entry["name"] for entry in entries if entry["name"].startswith(namespace_prefix(name))]


def remove(name: str) -> None:
    """Kill what runs in a lab's namespaces, and delete them; interfaces and bridge go with them."""
    for namespace in namespaces(name):
        for pid in run([("ip", "netns", "pids", namespace)])[0].split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        run([("ip", "netns", "delete", namespace)])


def traffic(lab: Lab) -> list[Traffic]:
    """Of each host's interface since the lab was made."""
    show = ("-json", "-stats", "link", "show", INTERFACE)
    texts = run([("ip", "-n", lab.namespace(host), *show) for host in range(lab.hosts)])
    counters = [json.loads(text)[0]["stats64"] for text in texts]
    return [Traffic(each["tx"]["bytes"], each["rx"]["bytes"]) for each in counters]


def measure_line_rate(lab: Lab) -> float:
    """Payload bytes per second of the slowest host's link, in each direction while both are in use. Takes 2 s."""
    script = str(Path(line_rate.__file__))
    ring = [(lab.address(host), lab.address((host + 1) % lab.hosts)) for host in range(lab.hosts)]
    hosts = [
        subprocess.Popen(inside(lab, host, (sys.executable, script, *pair)), stdout=subprocess.PIPE, text=True)
        for host, pair in enumerate(ring)
    ]
    return min(float(process.communicate()[0]) for process in hosts)
