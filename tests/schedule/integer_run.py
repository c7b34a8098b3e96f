"""The judge: runs a Program on W simulated ranks with small integers, slowly and obviously, in random orders.

Each kind does to the operands it names what its name says. An order is drawn among those that lanes and `after` allow,
for each rank on its own. A collective starts on a rank when its lane gets there, takes its operand then, and ends when
the whole group is there; the n-th collective of a (lane, level) on one rank meets the n-th on the others.

An order fails with a FaultError when an instruction reads what does not exist, was freed or never written; gets sizes
that don't fit; sends other bytes than it says; writes a living transient again or leaves one alive; when gathered
parameters exceed the window; or when nothing can go on. A Program is right if every order ends in `expected_state`.
"""

import random
from collections.abc import Sequence
from math import ceil

from internevo_engine.program import LANES, Instruction, Level, Program
from tests.schedule.integer_ranks import (
    PRIME,
    TOTALS,
    FaultError,
    Rank,
    State,
    expected_state,
    outputs,
    packed,
    parameter,
    slice_of,
    updated,
)

ORDERS = 20
COLLECTIVES = ("gather", "refresh", "reduce")


def what_is_wrong(program: Program, expected: Sequence[State]) -> str | None:
    """The first of 20 orders that goes wrong, and how; None if all end in the expected state."""
    for order in range(ORDERS):
        try:
            if IntegerRun(program, order).run() != expected:
                return f"order {order}: another result"
        except FaultError as fault:
            return f"order {order}: {fault}"
    return None


def judge(program: Program) -> str | None:
    return what_is_wrong(program, expected_state(program))


class IntegerRun:
    """One execution of a Program in one order."""

    def __init__(self, program: Program, seed: int) -> None:
        self.program = program
        self.random = random.Random(seed)
        self.keeps_priorities = seed % 2 == 0
        self.levels = {level.name: level for level in program.levels}
        self.ranks = [Rank(program, rank) for rank in range(program.world)]
        self.queues = {
            (rank, lane): [n for n, each in enumerate(program.instructions) if each.lane == lane]
            for rank in range(program.world)
            for lane in LANES
        }
        self.ended: list[set[int]] = [set() for _ in self.ranks]
        self.arrived: dict[tuple[object, ...], dict[int, list[int]]] = {}
        self.started: dict[tuple[object, ...], int] = {}
        self.waiting: set[tuple[int, str]] = set()

    def run(self) -> list[State]:
        """Half of the orders prefer some lanes as long as they can, so that others fall far behind."""
        turns = list(self.queues)
        self.random.shuffle(turns)
        while any(self.queues.values()):
            if not self.keeps_priorities:
                self.random.shuffle(turns)
            turn = next((turn for turn in turns if self.can_start(*turn)), None)
            if turn is None:
                raise FaultError("deadlock")
            self.start(*turn)
        return [rank.final_state() for rank in self.ranks]

    def can_start(self, rank: int, lane: str) -> bool:
        queue = self.queues[rank, lane]
        if not queue or (rank, lane) in self.waiting:
            return False
        return self.ended[rank].issuperset(self.program.instructions[queue[0]].after)

    def start(self, rank: int, lane: str) -> None:
        number = self.queues[rank, lane][0]
        instruction = self.program.instructions[number]
        if instruction.kind in COLLECTIVES or instruction.what == "all":
            self.arrive(rank, instruction)
            return
        if instruction.bytes:
            raise FaultError(f"{instruction.kind} sends bytes")
        getattr(self, f"run_{instruction.kind}")(self.ranks[rank], instruction)
        self.end(rank, lane)

    def end(self, rank: int, lane: str) -> None:
        self.ended[rank].add(self.queues[rank, lane].pop(0))
        self.waiting.discard((rank, lane))

    # Local kinds.

    def run_compute(self, rank: Rank, instruction: Instruction) -> None:
        arguments = [cell for name in instruction.reads for cell in rank.load(name)]
        known = [call for call in self.program.calls if call.name == instruction.what]
        if not known or len(known[0].writes) != len(instruction.writes):
            raise FaultError(f"no call {instruction.what} with such outputs")
        results = outputs(instruction.what, arguments, len(instruction.writes))
        for name, result in zip(instruction.writes, results, strict=True):
            self.write(rank, instruction, name, [result])

    def run_pack(self, rank: Rank, instruction: Instruction) -> None:
        values = [rank.load(name) for name in instruction.reads if name.startswith("%")]
        (target,) = self.operands(instruction.writes, 1)
        cells = packed([cell for value in values for cell in value], self.bucket_numel(instruction))
        for name in instruction.reads:
            if not name.startswith("%"):
                cells = self.add(cells, rank.load(name))
        self.write(rank, instruction, target, cells)

    def run_accumulate(self, rank: Rank, instruction: Instruction) -> None:
        (target,) = self.operands(instruction.writes, 1)
        first, *rest = [rank.load(name) for name in instruction.reads] or [[]]
        for cells in rest:
            first = self.add(first, cells)
        self.write(rank, instruction, target, first)

    def run_norm(self, rank: Rank, instruction: Instruction) -> None:
        (target,) = self.operands(instruction.writes, 1)
        (source,) = self.operands(instruction.reads, 1)
        self.write(rank, instruction, target, [sum(cell * cell for cell in rank.load(source)) % PRIME])

    def run_update(self, rank: Rank, instruction: Instruction) -> None:
        total, norm, state, held = self.operands(instruction.reads, 4)
        if self.operands(instruction.writes, 2) != [state, held] or f"[{self.bucket_of(instruction)}]" not in state:
            raise FaultError("update of other buffers than it reads, or than its bucket's")
        rank.load(held, rank.place(held, len(self.program.levels)))
        states, gradients = rank.load(state), rank.load(total)
        if len(states) != len(gradients):
            raise FaultError("update with a gradient of another length")
        news = updated(states, gradients, rank.load(norm))
        rank.store(state, news)
        rank.store(held, [parameter(cell) for cell in news], rank.place(held, len(self.program.levels)))

    def run_free(self, rank: Rank, instruction: Instruction) -> None:
        rank.free(instruction.writes)

    # Collectives: what a rank brings, and what all of them leave.

    def arrive(self, rank: int, instruction: Instruction) -> None:
        group = self.group(rank, instruction)
        issue = self.started.get((rank, instruction.lane, instruction.level), 0)
        self.started[rank, instruction.lane, instruction.level] = issue + 1
        meeting = (instruction.lane, instruction.level, group, issue)
        brought = self.arrived.setdefault(meeting, {})
        brought[rank] = self.bring(self.ranks[rank], instruction)
        self.waiting.add((rank, instruction.lane))
        if len(brought) < len(group):
            return
        for member in group:
            numbers = self.queues[member, instruction.lane]
            cells = [brought[other] for other in group]
            self.leave(self.ranks[member], self.program.instructions[numbers[0]], cells)
            self.end(member, instruction.lane)

    def group(self, rank: int, instruction: Instruction) -> tuple[int, ...]:
        if instruction.what == "all":
            if instruction.level != "all":
                raise FaultError("not over the world")
            return tuple(range(self.program.world))
        level = self.level(instruction)
        found = [group for group in level.groups(self.program.world) if rank in group and group[-1] < len(self.ranks)]
        if not found:
            raise FaultError(f"rank {rank} has no group")
        return found[0]

    def bring(self, rank: Rank, instruction: Instruction) -> list[int]:
        if instruction.what == "all":
            norms = [cell for name in instruction.reads if not name.startswith("%") for cell in rank.load(name)]
            losses = [rank.load(name) for name in instruction.reads if name.startswith("%")]
            kinds = len(self.program.loss)
            sums = [sum(loss[0] for loss in losses[kind::kinds]) for kind in range(kinds)]
            return [sum(norms), *sums] + [0] * (TOTALS - 1 - kinds)
        (source,) = self.operands(instruction.reads, 1)
        if instruction.kind == "reduce":
            return rank.load(source)
        number = self.program.levels.index(self.level(instruction)) + 1
        return rank.load(source, rank.place(source, number))

    def leave(self, rank: Rank, instruction: Instruction, brought: Sequence[list[int]]) -> None:
        (target,) = self.operands(instruction.writes, 1)
        if instruction.what == "all":
            self.count_bytes(instruction, 8 * self.sent_by_all_reduce(TOTALS, self.program.world))
            self.write(rank, instruction, target, [sum(cells) % PRIME for cells in zip(*brought, strict=True)])
            return
        level = self.level(instruction)
        if instruction.kind == "reduce":
            self.leave_reduced(rank, instruction, brought)
            return
        whole = [cell for cells in brought for cell in cells]
        self.count_bytes(instruction, self.program.param_bytes * (len(whole) - len(brought[0])))
        rank.create(target, instruction)
        rank.store(target, whole, rank.place(target, self.program.levels.index(level)))

    def leave_reduced(self, rank: Rank, instruction: Instruction, brought: Sequence[list[int]]) -> None:
        level = self.level(instruction)
        if len({len(cells) for cells in brought}) != 1 or (level.state != "R" and len(brought[0]) % level.size):
            raise FaultError("ranks bring gradients that can't be cut")
        total = [sum(cells) % PRIME for cells in zip(*brought, strict=True)]
        once = len(total) - len(total) // level.size
        numel = self.sent_by_all_reduce(len(total), level.size) if level.state == "R" else once
        self.count_bytes(instruction, self.program.wire_bytes * numel)
        owned = slice_of(rank.rank, [level], len(total))
        self.write(rank, instruction, instruction.writes[0], total[owned.start : owned.stop])

    def level(self, instruction: Instruction) -> Level:
        if instruction.level not in self.levels:
            raise FaultError(f"no level {instruction.level}")
        return self.levels[instruction.level]

    def sent_by_all_reduce(self, numel: int, size: int) -> int:
        """Elements: each rank sums one of `size` equal slices, and hands it to all others."""
        return 2 * (size - 1) * ceil(numel / size)

    def count_bytes(self, instruction: Instruction, sent: int) -> None:
        if instruction.bytes != sent:
            raise FaultError(f"{sent} bytes are sent, not {instruction.bytes}")

    def bucket_of(self, instruction: Instruction) -> int:
        number = instruction.what.removeprefix("bucket[").removesuffix("]")
        if not number.isdecimal() or int(number) >= len(self.program.buckets):
            raise FaultError(f"no bucket {instruction.what}")
        return int(number)

    def bucket_numel(self, instruction: Instruction) -> int:
        return self.program.buckets[self.bucket_of(instruction)].numel

    def operands(self, names: Sequence[str], count: int) -> list[str]:
        if len(names) != count:
            raise FaultError(f"{len(names)} operands, not {count}")
        return list(names)

    def write(self, rank: Rank, instruction: Instruction, name: str, cells: Sequence[int]) -> None:
        rank.create(name, instruction)
        rank.store(name, cells)

    def add(self, one: Sequence[int], other: Sequence[int]) -> list[int]:
        if len(one) != len(other):
            raise FaultError("sums of different lengths")
        return [(a + b) % PRIME for a, b in zip(one, other, strict=True)]
