"""runtime: what this machine has. Facts go into a frozen `Machine`, choices are made from it and from nothing else.

torch is imported only where an NVIDIA device exists, so that a laptop answers at once.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from internevo_engine.errors import ConfigError
from internevo_engine.plan.topology import Topology

Queueing = Literal["threads", "streams"]


@dataclass(frozen=True)
class Gpu:
    """One visible CUDA device."""

    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Machine:
    """One host as this process sees it."""

    num_cpus: int
    free_memory_bytes: int
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True)
class Device:
    """A kind of device to train on: one row of DEVICES."""

    name: str
    backend: str
    """torch.distributed backend."""
    default_nproc: Callable[[Machine], int]
    """Ranks on one host when launch.nproc is auto."""
    memory_bytes: Callable[[Machine, int], int]
    """Memory of one rank, given the machine and its ranks."""
    queueing: Queueing
    """What the lanes of a Program are: threads that work, or streams that one thread fills."""


DEVICES = {
    "cuda": Device(
        "cuda",
        "nccl",
        lambda machine: len(machine.gpus),
        lambda machine, _: min(g.memory_bytes for g in machine.gpus),
        "streams",
    ),
    "cpu": Device("cpu", "gloo", lambda _: 1, lambda machine, ranks: machine.free_memory_bytes // ranks, "threads"),
}


def probe_machine() -> Machine:
    """Read the facts of this host; visible devices as CUDA_VISIBLE_DEVICES leaves them."""
    return Machine(len(os.sched_getaffinity(0)), _free_memory_bytes(), _visible_gpus())


def choose_device(asked: str, machine: Machine) -> Device:
    """CUDA where there is one, else CPU; or what was asked.

    Raises:
        ConfigError: cuda was asked for and is not there.
    """
    if asked == "cuda" and not machine.gpus:
        raise ConfigError(
            "launch.device=cuda, but torch sees no CUDA device; use launch.device=cpu, "
            "or see what is missing with: python -m internevo_engine doctor"
        )
    name = ("cuda" if machine.gpus else "cpu") if asked == "auto" else asked
    return DEVICES[name]


def local_topology(device: Device, machine: Machine, *, world: int, local_world: int) -> Topology:
    """The topology of a job whose every host is like this machine.

    Raises:
        ConfigError: more ranks on this host than it has GPUs.
    """
    if device.name == "cuda" and local_world > len(machine.gpus):
        raise ConfigError(
            f"{local_world} ranks on this host, but {len(machine.gpus)} GPUs are visible; "
            f"use launch.nproc={len(machine.gpus)} or launch.device=cpu"
        )
    return Topology(world, local_world, device.name, device.memory_bytes(machine, local_world))


def _visible_gpus() -> tuple[Gpu, ...]:
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return ()
    import torch  # 2 s, and only worth it where a device exists

    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return tuple(Gpu(p.name, p.total_memory) for p in properties)


def _free_memory_bytes() -> int:
    """Memory that can be had without swapping, also under a container's limit."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        available = min(available, int(text) - int(used.read_text()))
    return available
