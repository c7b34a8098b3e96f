"""runtime: the oracle of the executor. The same Program, one instruction after the other, slowly and obviously.

No lanes, no routes, no level groups: every collective gathers everything from the whole world and picks what it needs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from math import fsum, isfinite, sqrt

import torch
import torch.distributed as dist
from torch import Tensor

from internevo_engine.config.schema import OptimConfig
from internevo_engine.program import Instruction, Kind, Level, Program
from internevo_engine.runtime.executor import Bindings, MicroBatch, inputs_of
from internevo_engine.runtime.extension import adamw_, load_extension, square_sum, tree_sum
from internevo_engine.runtime.limits import NO_LIMITS, Limits

SQUARE_BLOCK = 16
"""Elements whose squares are added in a row, unless in mode 'fast'; every plan cuts a bucket between blocks."""


class Interpreter:
    """Executor's twin: the same arguments, the same bits unless the mode is 'fast'."""

    def __init__(self, program: Program, bindings: Bindings, optim: OptimConfig) -> None:
        load_extension()
        self._program, self._bindings, self._optim = program, bindings, optim
        self._calls = {call.name: call for call in program.calls}
        self._levels = {level.name: level for level in program.levels}
        self._param_dtype = next(t.dtype for name, t in bindings.buffers.items() if name.startswith("p"))
        self._memory: dict[str, Tensor] = dict(bindings.buffers)
        self._actions: Mapping[Kind, Callable[[Instruction], None]] = {
            "gather": self._gather,
            "refresh": self._gather,
            "compute": self._compute,
            "pack": self._pack,
            "reduce": self._reduce,
            "accumulate": self._accumulate,
            "norm": self._norm,
            "update": self._update,
            "free": self._free,
        }

    @torch.no_grad()
    def step(
        self,
        micro_batches: Sequence[MicroBatch],
        *,
        lr: float,
        step: int,
        stop: bool = False,
        limits: Limits = NO_LIMITS,
    ) -> Tensor:
        """See runtime.executor.Step."""
        self._lr, self._step, self._stop, self._limits = lr, step, stop, limits
        self._squares: list[Tensor] = []
        inputs = inputs_of(self._program, micro_batches)
        self._memory |= inputs
        for instruction in self._program.instructions:
            self._actions[instruction.kind](instruction)
        for name in inputs:
            del self._memory[name]
        return self._totals

    def _gather(self, i: Instruction) -> None:
        """What the group holds lies side by side, in a slice that the deeper levels have filled before."""
        target, level = i.writes[0], self._level(i)
        num_held = sum(each.state == "P" for each in self._program.levels) if i.kind == "refresh" else 0
        if target not in self._memory:
            numel = self._program.buckets[_bucket(i)].numel
            self._memory[target] = torch.empty(numel, dtype=self._param_dtype)
        group = self._slice(self._memory[target], self._program.levels[num_held : level.index])
        in_place = i.reads == i.writes
        own = self._slice(group, [level]) if in_place else self._memory[i.reads[0]]
        group.copy_(torch.cat(self._from_group(level, own)))

    def _compute(self, i: Instruction) -> None:
        values = [self._memory[name] for name in i.reads[: len(self._calls[i.what].reads)]]
        params = [
            self._memory[f"param[{view.bucket}]"][view.offset :][: torch.Size(view.shape).numel()].view(view.shape)
            for view in self._bindings.call_params.get(i.what, ())
        ]
        outputs = self._bindings.regions[i.what](*values, *params)
        self._memory |= zip(i.writes, outputs, strict=True)

    def _pack(self, i: Instruction) -> None:
        bucket, offsets = self._program.buckets[_bucket(i)], self._bindings.grad_offsets[_bucket(i)]
        flat = torch.zeros(bucket.numel)
        for name, offset in zip(i.reads, offsets, strict=False):  # the sum may follow the gradients
            grad = self._memory[name].float().flatten()
            flat[offset : offset + grad.numel()] = grad
        if i.writes[0] in i.reads:
            self._memory[i.writes[0]] += flat
        else:
            self._write(i.writes[0], flat)

    def _reduce(self, i: Instruction) -> None:
        level, wire = self._level(i), self._bindings.wire
        total = tree_sum([row.float() for row in self._from_group(level, self._memory[i.reads[0]].to(wire))])
        if level.state == "R":
            self._write(i.writes[0], total.to(wire).float())
        else:
            self._write(i.writes[0], self._slice(total, [level]))

    def _accumulate(self, i: Instruction) -> None:
        """From left to right."""
        self._write(i.writes[0], reduce(torch.add, [self._memory[name] for name in i.reads]))

    def _norm(self, i: Instruction) -> None:
        if i.what != "all":
            self._squares.append(self._partial_squares(self._memory[i.reads[0]]))
            return
        losses = [self._memory[name].double() for name in i.reads if name.startswith("%")]
        own = torch.stack([*losses, torch.tensor(float(self._stop), dtype=torch.float64)])
        rows = [row.tolist() for row in self._from_world(own)]
        squares = [row.tolist() for row in self._from_world(torch.cat(self._squares))]
        replicas = [level for level in self._program.levels if level.state == "R"]
        firsts = [r for r in range(self._program.world) if all(level.digit(r) == 0 for level in replicas)]
        self._totals = torch.tensor(
            [
                _exact_sum(value for row in rows for value in row[:-1:2]),
                _exact_sum(value for row in rows for value in row[1:-1:2]),
                _exact_sum(row[-1] for row in rows),
                _exact_sum(value for rank in firsts for value in squares[rank]),
            ],
            dtype=torch.float64,
        )

    def _update(self, i: Instruction) -> None:
        loss_sum, count, _, squares = self._totals.tolist()
        if not count or self._limits.complaint(loss_sum / count, sqrt(squares) / count):
            return
        optim, owned = self._optim, self._bindings.owned[_bucket(i)]
        clip_factor = min(1.0, optim.clip / (sqrt(squares) / count + 1e-6)) if optim.clip else 1.0
        adamw_(
            owned.master,
            owned.exp_avg,
            owned.exp_avg_sq,
            self._memory[i.reads[0]],
            owned.param,
            torch.tensor([clip_factor / count], dtype=torch.float32),
            decayed_numel=owned.decayed_numel,
            lr=self._lr,
            beta1=optim.betas[0],
            beta2=optim.betas[1],
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            step=self._step,
        )

    def _free(self, i: Instruction) -> None:
        for name in i.writes:
            self._memory.pop(name, None)  # norm[b] is a name for a moment, and holds nothing here

    def _write(self, name: str, value: Tensor) -> None:
        """Into the caller's tensor where the buffer is persistent."""
        if name in self._bindings.buffers:
            self._memory[name].copy_(value)
        else:
            self._memory[name] = value.clone()

    def _partial_squares(self, total: Tensor) -> Tensor:
        if self._program.mode == "fast":
            return square_sum(total).view(1)
        columns = total.double().square().view(-1, SQUARE_BLOCK).unbind(1)
        return reduce(torch.add, columns)

    def _level(self, i: Instruction) -> Level:
        assert i.level is not None
        return self._levels[i.level]

    def _slice(self, flat: Tensor, cuts: Sequence[Level]) -> Tensor:
        """What this rank owns of a flat tensor that is cut along these levels, one after the other; a view."""
        for cut in cuts:
            flat = flat.view(cut.size, -1)[cut.digit(self._bindings.rank)]
        return flat

    def _from_group(self, level: Level, own: Tensor) -> list[Tensor]:
        members = next(g for g in level.groups(self._program.world) if self._bindings.rank in g)
        everything = self._from_world(own)
        return [everything[rank] for rank in members]

    def _from_world(self, own: Tensor) -> list[Tensor]:
        if self._program.world == 1:
            return [own]
        rows = [torch.empty_like(own) for _ in range(self._program.world)]
        dist.all_gather(rows, own.contiguous())
        return rows


def _exact_sum(values: Iterable[float]) -> float:
    """Rounded once; NaN if a value is not finite."""
    numbers = list(values)
    return fsum(numbers) if all(map(isfinite, numbers)) else float("nan")


def _bucket(i: Instruction) -> int:
    return int(i.what.removeprefix("bucket[").removesuffix("]"))
