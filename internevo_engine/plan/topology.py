"""plan: what the ranks are and where they stand. Pure numbers; who fills them in is runtime/machine.py or --gpus."""

from dataclasses import dataclass

from internevo_engine.errors import PlanError


@dataclass(frozen=True)
class Topology:
    """`world` ranks on equal hosts; ranks of one host are neighbours (0..k-1, k..2k-1, ...)."""

    world: int
    ranks_per_host: int
    device: str
    """'cuda' or 'cpu'."""
    memory_bytes: int | None = None
    """Memory that one rank may use; None where the machine isn't there (--gpus N)."""

    def __post_init__(self) -> None:
        if self.world % self.ranks_per_host:
            raise PlanError(
                f"world={self.world} ranks don't fill hosts of {self.ranks_per_host}; "
                "start the same number of ranks on every host"
            )

    @property
    def num_hosts(self) -> int:
        return self.world // self.ranks_per_host
