"""Types of the compiled module `_core` (csrc/bindings.cpp); csrc/core/bucketing.h has the contract."""

from collections.abc import Sequence
from typing import Any

TORCH_VERSION: str
"""Version of the torch that this build was compiled for."""
HAS_CUDA_KERNELS: bool
"""Whether the CUDA kernels were compiled in."""

class Param:
    """A parameter as bucketing sees it."""

    def __init__(self, numel: int, layer: int, decayed: bool, trained: bool = True) -> None: ...
    @property
    def numel(self) -> int: ...
    @property
    def layer(self) -> int: ...
    @property
    def decayed(self) -> bool: ...
    @property
    def trained(self) -> bool: ...

class Bucket:
    """Parameters that travel as one flat buffer; offsets and lengths are elements."""

    @property
    def params(self) -> list[int]:
        """Indices of the parameters, in order of placement: decayed ones first."""
    @property
    def offsets(self) -> list[int]:
        """First element of each of `params`, a multiple of 16."""
    @property
    def numel(self) -> int:
        """Length of the flat buffer, a multiple of 16 * num_shards."""
    @property
    def decayed_numel(self) -> int:
        """Elements [0, decayed_numel) belong to decayed parameters."""
    @property
    def trained(self) -> bool:
        """Trained and frozen parameters share no bucket."""

def make_buckets(params: Sequence[Param], target_bytes: int, num_shards: int) -> list[Bucket]:
    """Buckets in the order in which their gradients are complete, last layer first, then those of frozen
    parameters. Raises ValueError."""

class Rate:
    """Nanoseconds of a transfer: latency_ns + bytes * 1000 // bytes_per_us."""

    def __init__(self, latency_ns: int, bytes_per_us: int) -> None: ...

def schedule(
    header: str,
    *,
    call_ns: Sequence[int],
    gather: Sequence[Rate],
    reduce: Sequence[Rate],
    memory: Rate,
    overlap: bool,
) -> str:
    """The Program for a header, both as text (program.py); costs of its calls and levels. Raises ValueError."""

class Simulation:
    """A Program, parsed once; csrc/core/simulation.h has the contract. Raises ValueError if it can't be read."""

    def __init__(self, text: str) -> None: ...
    def run(
        self,
        *,
        call_ns: Sequence[int],
        gather: Sequence[Rate],
        reduce: Sequence[Rate],
        memory: Rate,
        contention: float,
    ) -> list[tuple[int, int]]:
        """Start and end of each instruction, in ns from the start of the step. Raises ValueError."""

def check_program(text: str) -> list[str]:
    """One line for each problem (csrc/core/checking.h); none: the Program is right. ValueError if it can't be read."""

def fault_points() -> list[tuple[str, str, str]]:
    """(name, where, actions that make sense) of each point at which something may go wrong on purpose."""

def arm_faults(plan: str, seed: int, rank: int, log: str) -> None:
    """See csrc/core/faults.h; this library's points only. Raises ValueError where the plan can't be read."""

def disarm_faults() -> None:
    """Nothing goes wrong any more."""

def faults_in_step(step: int) -> None:
    """The step that is about to begin, from 1."""

def fault(point: str) -> tuple[str, int] | None:
    """Pass a point: (action, number) that is left to do, or None. Raises ValueError for the action `raise`."""

def reprint_program(text: str) -> str:
    """What C++ reads, written again: the same text. Raises ValueError."""

class Board:
    """What every rank of a host is doing, in memory that its processes share (csrc/runtime/board.h)."""

    def __init__(self, fd: int, world: int) -> None:
        """Shares the file `fd`; -1: nobody else sees this board. Raises ValueError."""
    @property
    def world(self) -> int: ...
    def enter(self, rank: int, phase: str) -> None:
        """The rank begins a phase. Raises ValueError for an unknown one."""
    def begin_step(self, rank: int, step: int) -> None:
        """The rank enters the phase 'step'."""
    def beat(self, rank: int) -> None:
        """The rank runs Python."""
    def report_lost(self, rank: int) -> None:
        """The rank has ended: the watchdogs of all others end them."""
    def read(self, rank: int) -> dict[str, Any]:
        """phase, phase_began_ns, step, verdict and culprit as its watchdog found, begun [(step, instruction, ns)]."""

class Watchdog:
    """Ends this process when a rank is lost or hangs, until it is deleted (csrc/runtime/watchdog.h)."""

    def __init__(self, board: Board, rank: int, *, words: int, stacks: int, lost_code: int, hang_code: int) -> None:
        """What it sees goes to stderr and to the file `words` (-1: none); then a hang raises the signal `stacks`."""
