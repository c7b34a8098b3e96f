"""Runs one peer on one rank and says what it took. Every rank calls `measure`; the answer is equal on all but for
times and bytes, which are the rank's own and its host's.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from bench.peers.peer import Rank
from bench.peers.table import PEERS
from bench.workload import Settings
from internevo_engine.runtime.communicator import joined
from internevo_engine.runtime.launch import Place
from internevo_engine.runtime.machine import choose_device, probe_machine

INTERFACES = Path("/sys/class/net")


@dataclass(frozen=True)
class Measured:
    """One peer on one machine. Times are rank 0's where rank 0 reports."""

    peer: str
    world: int
    hosts: int
    settings: Settings
    device: str
    parameters: int
    rank_tokens: int
    rank_flops: int
    losses: list[float]
    """Of every step, warm-up included: the mean over all ranks."""
    first_step_s: float
    """From building the peer to the end of the first step: capture and compilation are in it."""
    step_s: list[float]
    bare_rss_bytes: int
    """Resident before the peer is built: Python, torch, the process group."""
    peak_rss_bytes: int
    """The most that was resident, building and compiling included."""
    sent_bytes: Mapping[str, float]
    """Bytes that left each interface of this host, per step, headers included."""
    planned_bytes: Mapping[str, int]
    """Bytes that a rank was to send per step by kind of link, where the implementation says so."""

    @property
    def median_s(self) -> float:
        return median(self.step_s)

    @property
    def resident_bytes(self) -> int:
        """What training took of memory, beyond the bare process."""
        return self.peak_rss_bytes - self.bare_rss_bytes

    def json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Measured":
        """Read what `json` wrote."""
        row: dict[str, Any] = json.loads(text)
        settings = row["settings"]
        return Measured(**{**row, "settings": Settings(**{**settings, "zero": tuple(settings["zero"])})})


@contextmanager
def joined_rank(settings: Settings, place: Place) -> Iterator[Rank]:
    """A rank on its device, with one thread, in the job's process group."""
    device = choose_device("auto", probe_machine())
    torch.set_num_threads(1)
    if device.name == "cuda":
        torch.cuda.set_device(place.local_rank)
    torch_device = torch.device(f"cuda:{place.local_rank}" if device.name == "cuda" else "cpu")
    with joined(place, device.backend):
        yield Rank(settings, place, torch_device)


def measure(name: str, rank: Rank) -> Measured:
    """Build the peer, train, and count."""
    settings, place = rank.settings, rank.place
    bare_rss_bytes = _memory("VmRSS")
    begin = time.perf_counter()
    peer = PEERS[name].build(rank)
    losses, seconds, sent = [], [], {}
    for step in range(settings.warm_up + settings.steps):
        batches = [batch.to(rank.device) for batch in settings.micro_batches(step, place.rank, place.world)]
        if step == settings.warm_up:
            _meet(place)
            sent = _interface_bytes()
        started = time.perf_counter()
        losses.append(peer.step(batches))
        _finish(rank.device)
        seconds.append(time.perf_counter() - (started if step else begin))
    _meet(place)
    per_step = {name: (count - sent[name]) / settings.steps for name, count in _interface_bytes().items()}
    measured = Measured(
        peer=name,
        world=place.world,
        hosts=place.world // place.local_world,
        settings=settings,
        device=rank.device.type,
        parameters=settings.num_parameters,
        rank_tokens=settings.rank_tokens,
        rank_flops=settings.rank_flops,
        losses=_mean_over_ranks(losses, rank),
        first_step_s=seconds[0],
        step_s=seconds[settings.warm_up :],
        bare_rss_bytes=bare_rss_bytes,
        peak_rss_bytes=_memory("VmHWM"),
        sent_bytes=per_step,
        planned_bytes=peer.planned_bytes(),
    )
    peer.close()
    return measured


def _memory(field: str) -> int:
    """Bytes of this process, by a line of /proc/self/status."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].removesuffix("kB")) * 1024


def _meet(place: Place) -> None:
    if place.world > 1:
        dist.barrier()


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _mean_over_ranks(losses: list[torch.Tensor], rank: Rank) -> list[float]:
    total = torch.stack(losses).to(rank.device)
    if rank.place.world > 1:
        dist.all_reduce(total)
    return (total / rank.place.world).tolist()


def _interface_bytes() -> dict[str, int]:
    """Sent by every interface that this process sees; in a lab those are eth0 and the host's own loopback."""
    return {path.name: int((path / "statistics/tx_bytes").read_text()) for path in sorted(INTERFACES.iterdir())}
