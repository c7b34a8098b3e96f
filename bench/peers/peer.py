"""What every implementation looks like to measure.py: a Rank goes in, a Peer comes out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from bench.workload import Settings
from internevo_engine.data.packing import MicroBatch
from internevo_engine.runtime.launch import Place


@dataclass(frozen=True)
class Rank:
    """Where a peer is built: every rank builds it, after the process group was joined."""

    settings: Settings
    place: Place
    device: torch.device


@dataclass(frozen=True)
class Peer:
    """An implementation that is ready to train."""

    step: Callable[[Sequence[MicroBatch]], torch.Tensor]
    """One update; returns the mean loss, of this rank or of all."""
    close: Callable[[], None] = lambda: None
    planned_bytes: Callable[[], Mapping[str, int]] = dict
    """Bytes that a rank sends in a step by kind of link (near, far), where the implementation says so."""


BuildPeer = Callable[[Rank], Peer]
