"""runtime: runs a Program, one call a step, or one a micro-batch and one for the rest.

Everything above hands it a Program and what the names in it stand for. The work is done in C++
(csrc/runtime/executor.h): lanes are threads, or streams of the device; Python runs only inside regions. interpreter.py
does the same slowly and obviously.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from internevo_engine.config.schema import OptimConfig
from internevo_engine.program import Lane, Program
from internevo_engine.runtime.communicator import lost_rank
from internevo_engine.runtime.extension import load_extension
from internevo_engine.runtime.limits import NO_LIMITS, Limits
from internevo_engine.runtime.machine import Queueing
from internevo_engine.runtime.transfers import Route

Region = Callable[..., tuple[Tensor, ...]]
"""(values that the call reads, then views of its parameters) -> values that it writes. Called without autograd."""

MicroBatch = Mapping[str, Tensor]
"""The values that no call writes, by name: '%tokens'."""


@dataclass(frozen=True)
class ParamView:
    """Where a parameter lies: a view of its bucket."""

    bucket: int
    offset: int
    """In elements."""
    shape: tuple[int, ...]


@dataclass(frozen=True)
class OwnedState:
    """What this rank updates of one bucket: flat, equally long tensors."""

    master: Tensor
    """fp32."""
    exp_avg: Tensor
    exp_avg_sq: Tensor
    param: Tensor | None
    """The same slice of the parameter in the compute dtype; None where the master is that slice itself."""
    decayed_numel: int
    """Weight decay applies to the elements before this one."""


@dataclass(frozen=True)
class Bindings:
    """What the names of a Program stand for on this rank."""

    rank: int
    regions: Mapping[str, Region]
    """By name of the call."""
    call_params: Mapping[str, Sequence[ParamView]]
    """By name of the call, in the order in which its region takes them."""
    grad_offsets: Sequence[Sequence[int]]
    """For each trained bucket, where its gradients are placed, in elements, rising."""
    buffers: Mapping[str, Tensor]
    """The flat tensor of every persistent param, pshard and gsum."""
    owned: Sequence[OwnedState]
    """For each trained bucket."""
    groups: Mapping[tuple[Lane, str], str]
    """(lane, level) -> name of the process group, of which this rank is a member; 'all' is the world."""
    wire: torch.dtype
    """What gradients travel in; they are added in fp32."""
    routes: Mapping[str, Sequence[Route]]
    """By name of the level: how its transfers travel, in the backend of the groups; see transfers.py."""
    queueing: Queueing
    """What a lane is; see `machine.DEVICES`."""
    audited: bool = False
    """Checksums of messages and of states at rest are compared before the update; see audit.py."""
    board: int = -1
    """File of the board on which this rank is watched; -1: it is not. See watch.py."""


class Step(Protocol):
    """What Executor and Interpreter have in common."""

    def step(
        self,
        micro_batches: Sequence[MicroBatch],
        *,
        lr: float,
        step: int,
        stop: bool = False,
        limits: Limits = NO_LIMITS,
    ) -> Tensor:
        """One update of the parameters.

        Args:
            step: 1 at the first update.
            stop: this rank wants to stop after this step.
            limits: what loss and gradient norm may be; equal on all ranks.

        Returns:
            [4] fp64, summed over micro-batches and ranks: loss sum, count, ranks that want to stop, square sum of the
            gradient sum. If one of them is not finite or above its limit, or nothing was counted, no rank has updated
            anything. On the device of the parameters: on CUDA reading them is the step's one wait for the device.

        Raises:
            LostRankError: a collective failed.
            Exception: whatever a region raised, with a note that names the instruction.
        """
        ...


def inputs_of(program: Program, micro_batches: Sequence[MicroBatch]) -> dict[str, Tensor]:
    """By operand: value %tokens of micro-batch 1 is %m1.tokens. They are the last ones of the step, or all."""
    first = program.micro_batches - len(micro_batches)
    return {
        of_micro_batch(m, name): tensor
        for m, batch in enumerate(micro_batches, first)
        for name, tensor in batch.items()
    }


def of_micro_batch(number: int, value: str) -> str:
    return f"%m{number}.{value[1:]}"


def ends_of_compute(program: Program) -> tuple[int, ...]:
    """For each micro-batch the number after its last compute. Numbers rise with `after`, so one may stop there."""
    last = {i.micro_batch: number for number, i in enumerate(program.instructions) if i.kind == "compute"}
    return tuple(last[m] + 1 for m in range(program.micro_batches))


class Executor:
    """Runs a Program on this rank. All ranks make the same calls in the same order.

    An error ends the step, and the executor with it: ranks that part in the middle of a step can't meet again.
    """

    def __init__(self, program: Program, bindings: Bindings, optim: OptimConfig) -> None:
        load_extension()
        self._program, self._bindings = program, bindings  # C++ calls the regions without owning them
        self._ends = ends_of_compute(program)
        self._native = torch.classes.internevo.Executor(
            program.text,
            bindings.rank,
            [(name, id(region), _views(bindings, name)) for name, region in bindings.regions.items()],
            [list(offsets) for offsets in bindings.grad_offsets],
            dict(bindings.buffers),
            [(_tensors(owned), owned.decayed_numel) for owned in bindings.owned],
            {f"{lane} {level}": group for (lane, level), group in bindings.groups.items()},
            {level: [route.row for route in routes] for level, routes in bindings.routes.items()},
            bindings.wire,
            [optim.clip, *optim.betas, optim.eps, optim.weight_decay],
            bindings.queueing,
            bindings.audited,
            bindings.board,
        )

    def step(
        self,
        micro_batches: Sequence[MicroBatch],
        *,
        lr: float,
        step: int,
        stop: bool = False,
        limits: Limits = NO_LIMITS,
    ) -> Tensor:
        """See Step. Without the micro-batches that went through `advance` in this step."""
        with self._peers_named():
            inputs = inputs_of(self._program, micro_batches)
            return self._native.step(inputs, lr, step, stop, limits.loss, limits.grad_norm)

    def advance(self, number: int, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Forward and backward of micro-batch `number`, the next of this step, ahead of the `step` that does the rest.

        Returns:
            This rank's loss sum and count, 0-dim.
        """
        inputs = {of_micro_batch(number, name): tensor for name, tensor in micro_batch.items()}
        with self._peers_named():
            self._native.advance(inputs, self._ends[number])
        loss_sum, count = (self._native.value(of_micro_batch(number, name)) for name in self._program.loss)
        return loss_sum, count

    @contextmanager
    def _peers_named(self) -> Iterator[None]:
        try:
            yield
        except dist.DistError as error:
            raise lost_rank(self._bindings.rank, error) from error

    def audit_total(self) -> list[int]:
        """Balance of every instruction of the last step, then of every bucket at rest, over all ranks; 0: well."""
        return self._native.audit_total().tolist()

    def audit_own(self) -> list[int]:
        """The same of this rank; a transfer's need not be 0."""
        return self._native.audit_own().tolist()

    def messages(self, instruction: int) -> list[list[int]]:
        """[2, members of the group]: checksums of what this rank sent to and received from each."""
        return self._native.messages(instruction).tolist()

    def accept_states(self) -> None:
        """The optimizer states were replaced: they are right as they are now."""
        self._native.accept_states()

    def close(self) -> None:
        """Let go of process groups and tensors, so that the groups can be destroyed before Python ends."""
        del self._native

    @property
    def trace(self) -> Tensor:
        """[instructions, 2] int64: start and end of each instruction in the last step, in ns of time.monotonic_ns.

        Where lanes are streams an instruction ends when its work is queued, and says nothing of the device.
        """
        return self._native.trace()

    @property
    def live_bytes(self) -> int:
        """Of transient buffers and values; 0 between steps of a Program that frees what it makes."""
        return self._native.live_bytes()

    @property
    def peak_bytes(self) -> int:
        """The most of them at once in the last step, the micro-batches included."""
        return self._native.peak_bytes()


def _views(bindings: Bindings, call: str) -> list[tuple[int, int, list[int]]]:
    return [(view.bucket, view.offset, list(view.shape)) for view in bindings.call_params.get(call, ())]


def _tensors(owned: OwnedState) -> list[Tensor]:
    states = [owned.master, owned.exp_avg, owned.exp_avg_sq]
    return states if owned.param is None else [*states, owned.param]
