"""Types of the compiled module `_core` (csrc/bindings.cpp); csrc/core/bucketing.h has the contract."""

from collections.abc import Sequence

TORCH_VERSION: str
"""Version of the torch that this build was compiled for."""
HAS_CUDA_KERNELS: bool
"""Whether the CUDA kernels were compiled in."""

class Param:
    """A parameter as bucketing sees it."""

    def __init__(self, numel: int, layer: int, decayed: bool) -> None: ...
    @property
    def numel(self) -> int: ...
    @property
    def layer(self) -> int: ...
    @property
    def decayed(self) -> bool: ...

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

def make_buckets(params: Sequence[Param], target_bytes: int, num_shards: int) -> list[Bucket]:
    """Buckets in the order in which their gradients are complete, last layer first. Raises ValueError."""

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

def reprint_program(text: str) -> str:
    """What C++ reads, written again: the same text. Raises ValueError."""
