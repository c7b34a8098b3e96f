"""runtime: what a step is, by graph.mode. Both rows are made with equal arguments and called alike."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from internevo_engine.program import Program
from internevo_engine.runtime.graph_step import GraphStep
from internevo_engine.runtime.hooks_step import HooksStep
from internevo_engine.runtime.limits import Limits


class Step(Protocol):
    """What graph.mode chooses: see GraphStep and HooksStep."""

    @property
    def program(self) -> Program | None: ...
    @property
    def kept_bytes(self) -> int: ...
    def forward_backward(self, number: int, batch: object) -> tuple[Tensor, Tensor]: ...
    def finish(
        self, micro_batches: Sequence[object], *, lr: float, step: int, stop: bool, limits: Limits
    ) -> list[float]: ...
    def states_replaced(self) -> None: ...
    def close(self) -> None: ...


STEPS: Mapping[str, type[GraphStep] | type[HooksStep]] = {"graph": GraphStep, "hooks": HooksStep}
