"""The judge's arithmetic and memory: one training step on small integers, and what each simulated rank holds.

integer_run.py executes Programs on it. Nothing here comes from the scheduler, the layout or the checker;
`expected_state` computes the step without any Program.
"""

from collections.abc import Sequence
from math import prod

from internevo_engine.program import Instruction, Level, Program

PRIME = 2_147_483_647
POISON = None
TOTALS = 4 * 68
"""Words that all ranks add at the end of a step."""
Cells = list[int | None]
State = dict[str, list[int]]
"""What a step leaves behind on one rank: optimizer states, its slice of the parameters, norm and loss."""


class FaultError(Exception):
    """A run that no correct Program can have."""


def mix(*numbers: int) -> int:
    """A number that depends on all of them and on their order."""
    result = 17
    for number in numbers:
        result = (result * 1_000_003 + number + 11) % PRIME
    return result


def spell(text: str) -> int:
    return mix(*text.encode())


def slice_of(rank: int, levels: Sequence[Level], numel: int) -> range:
    """Elements of a flat buffer that a rank owns after it was cut along `levels`."""
    first = 0
    for level in levels:
        if level.state != "R":
            numel //= level.size
            first += rank // level.stride % level.size * numel
    return range(first, first + numel)


def outputs(call: str, arguments: Sequence[int], count: int) -> list[int]:
    return [mix(spell(call), place, *arguments) for place in range(count)]


def packed(gradients: Sequence[int], numel: int) -> list[int]:
    return [mix(place, gradients[place % len(gradients)]) if gradients else 0 for place in range(numel)]


def updated(states: Sequence[int], total: Sequence[int], norm: Sequence[int]) -> list[int]:
    return [(3 * state + grad * (sum(norm) % 1009)) % PRIME for state, grad in zip(states, total, strict=True)]


def parameter(state: int) -> int:
    return 7 * state % PRIME


def first_states(program: Program) -> list[list[int]]:
    return [[mix(5, b, place) for place in range(bucket.numel)] for b, bucket in enumerate(program.buckets)]


def token(rank: int, micro_batch: int, name: str) -> int:
    return mix(spell(name), rank, micro_batch)


def expected_state(program: Program) -> list[State]:
    """The step of every rank, from the header alone: one loop over ranks, micro-batches and calls."""
    states = first_states(program)
    params = [[parameter(state) for state in bucket] for bucket in states]
    totals = [[0] * bucket.numel for bucket in program.buckets]
    loss = [0] * len(program.loss)
    for rank in range(program.world):
        for m in range(program.micro_batches):
            values: dict[str, int] = {}
            for call in program.calls:
                arguments = [values.get(name, token(rank, m, name)) for name in call.reads]
                arguments += [cell for bucket in call.buckets for cell in params[bucket]]
                values |= zip(call.writes, outputs(call.name, arguments, len(call.writes)), strict=True)
            loss = [(one + values[name]) % PRIME for one, name in zip(loss, program.loss, strict=True)]
            for total, bucket in zip(totals, program.buckets, strict=True):
                for place, grad in enumerate(packed([values[name] for name in bucket.grads], bucket.numel)):
                    total[place] = (total[place] + grad) % PRIME
    replicas = prod(level.size for level in program.levels if level.state == "R")
    norm = [replicas * sum(cell * cell for total in totals for cell in total) % PRIME, *loss]
    norm += [0] * (TOTALS - len(norm))
    news = [
        updated(state, total, norm) if bucket.trained else state
        for state, total, bucket in zip(states, totals, program.buckets, strict=True)
    ]
    return [owned_state(program, rank, news, norm) for rank in range(program.world)]


def owned_state(program: Program, rank: int, states: Sequence[Sequence[int]], norm: list[int]) -> State:
    result = {"norm": norm}
    for b, state in enumerate(states):
        trained = program.buckets[b].trained
        owned = [state[place] for place in slice_of(rank, levels_holding(program, trained), len(state))]
        result |= {f"os[{b}]": owned} if trained else {}
        result[f"held[{b}]"] = [parameter(cell) for cell in owned]
    return result


def levels_holding(program: Program, trained: bool) -> list[Level]:
    """Those along which is cut what a rank knows of a bucket between steps: of a frozen one all that it holds."""
    return [level for level in program.levels if trained or level.state == "P"]


class Rank:
    """One rank's memory. Every buffer is a list of cells; POISON where nothing was written."""

    def __init__(self, program: Program, rank: int) -> None:
        self.program = program
        self.rank = rank
        self.cuts_params = [level for level in program.levels if level.state == "P"]
        self.persistent = {buffer.name for buffer in program.buffers if buffer.persistent}
        self.numel = {buffer.name: self.cells_of(buffer.name, buffer.bytes) for buffer in program.buffers}
        self.memory: dict[str, Cells] = {name: [POISON] * self.numel[name] for name in self.persistent}
        self.admit_batch()
        self.admit_states()

    def cells_of(self, name: str, num_bytes: int) -> int:
        width = {"param": self.program.param_bytes, "pshard": self.program.param_bytes, "os": 12, "norm": 8}
        cell_bytes = width.get(name.split("[")[0], 4)
        if num_bytes % cell_bytes:
            raise FaultError(f"{name} of {num_bytes} bytes holds no whole number of elements")
        return num_bytes // cell_bytes

    def admit_batch(self) -> None:
        written = {name for call in self.program.calls for name in call.writes}
        for value in self.program.values:
            for m in range(self.program.micro_batches):
                if value.name not in written:
                    name = f"%m{m}.{value.name[1:]}"
                    self.memory[name] = [token(self.rank, m, value.name)]
                    self.persistent.add(name)

    def admit_states(self) -> None:
        """The last step updated the owned slice only; the rest of the parameters is stale, here poison."""
        for b, state in enumerate(first_states(self.program)):
            trained = self.program.buckets[b].trained
            cuts = levels_holding(self.program, trained)
            owned = [state[place] for place in slice_of(self.rank, cuts, len(state))]
            if trained:
                self.store(f"os[{b}]", owned)
            held = f"pshard[{b}]" if self.cuts_params else f"param[{b}]"
            cells = self.memory[held]
            for place, cell in zip(self.place(held, len(cuts)), owned, strict=True):
                cells[place] = parameter(cell)

    def place(self, name: str, num_levels: int) -> range:
        """Where, in param or pshard, the slice lies that is left after the first `num_levels` levels."""
        kind, _, bucket = name.removesuffix("]").partition("[")
        if kind not in ("param", "pshard"):
            raise FaultError(f"{name} has no slices of parameters")
        numel = self.program.buckets[int(bucket)].numel
        found = slice_of(self.rank, self.program.levels[:num_levels], numel)
        first = slice_of(self.rank, self.cuts_params, numel).start if name.startswith("pshard") else 0
        return range(found.start - first, found.stop - first)

    def load(self, name: str, places: range | None = None) -> list[int]:
        if name not in self.memory:
            raise FaultError(f"{name} is read but does not exist")
        cells = self.memory[name]
        if places is not None and not 0 <= places.start <= places.stop <= len(cells):
            raise FaultError(f"{name} is too short")
        found = cells if places is None else [cells[place] for place in places]
        if POISON in found:
            raise FaultError(f"{name} is read before it is written")
        return [cell for cell in found if cell is not None]

    def create(self, name: str, instruction: Instruction) -> None:
        """Make room for what is written; only what is read as well may be alive already."""
        if name in self.persistent or name in instruction.reads:
            if name not in self.memory:
                raise FaultError(f"{name} is written but does not exist")
            return
        if name in self.memory:
            raise FaultError(f"{name} is alive and written again: its memory is lost")
        self.memory[name] = [POISON] * self.numel.get(name, 1)
        alive = sum(self.numel[other] for other in self.memory if other.startswith("param["))
        if self.cuts_params and 0 < self.program.window_bytes < alive * self.program.param_bytes:
            raise FaultError(f"{name} exceeds the window")

    def store(self, name: str, cells: Sequence[int], places: range | None = None) -> None:
        target = self.memory[name]
        where = range(len(target)) if places is None else places
        if len(where) != len(cells) or (len(where) and where[-1] >= len(target)):
            raise FaultError(f"{name} gets {len(cells)} elements")
        for place, cell in zip(where, cells, strict=True):
            target[place] = cell

    def free(self, names: Sequence[str]) -> None:
        for name in names:
            if name in self.persistent or self.memory.pop(name, None) is None:
                raise FaultError(f"{name} can't be freed")

    def final_state(self) -> State:
        left = self.memory.keys() - self.persistent
        if left:
            raise FaultError(f"{min(left)} is never freed")
        state = {"norm": self.load("norm")}
        for b, bucket in enumerate(self.program.buckets):
            held = f"pshard[{b}]" if self.cuts_params else f"param[{b}]"
            state |= {f"os[{b}]": self.load(f"os[{b}]")} if bucket.trained else {}
            cuts = levels_holding(self.program, bucket.trained)
            state[f"held[{b}]"] = self.load(held, self.place(held, len(cuts)))
        return state
