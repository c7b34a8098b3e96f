"""Floor 0: the Program, one training step as a flat list of instructions. The contract between Python and C++.

schedule hands it on; runtime executes it, and knows nothing else of the step. Every rank runs the same Program: no
rank number occurs in it. Text is the one form in which it travels (golden file, debug dump, argument of C++, input of
the fingerprint); csrc/core/program.h reads and writes the very same text. A Program holds, in this order:

    program v1 world=2 micro_batches=1 mode=fast param_bytes=2 wire_bytes=4 window_bytes=0 loss=%loss
    level OS0 size=2 stride=1 link=near             digits of a rank, fastest first
    bucket 0 numel=1024 grads=%g0,%g1 [frozen]      parameters that travel together; their gradients, as placed
    value %h0 bytes=8192                            what calls hand to each other, once for all micro-batches
    call fwd.embed reads=%tokens buckets=0 writes=%h0
    buffer param[0] bytes=2048 persistent           what belongs to a bucket
    0 gather refresh bucket[0] m=- level=OS0 bytes=1024 cost=41 reads=param[0] writes=param[0] after=-

A lane executes its instructions one by one; `after` names those of other lanes that must have ended before. Value
`%h0` of micro-batch 1 is the operand `%m1.h0`. A collective runs in the communicator of its (lane, level). A transient
buffer or value lives from its writer to the `free` that names it; all others are there from the start.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal, TypeVar, get_args

Name = TypeVar("Name", bound=str)
Lane = Literal["compute", "gather", "near", "far", "optimizer", "host"]
Kind = Literal["gather", "refresh", "compute", "pack", "reduce", "accumulate", "norm", "update", "free"]
Mode = Literal["fast", "ordered", "invariant"]
State = Literal["P", "G", "OS", "R"]
Link = Literal["near", "far"]

LANES: tuple[Lane, ...] = get_args(Lane)
KINDS: tuple[Kind, ...] = get_args(Kind)
LIFETIMES = ("persistent", "transient")
_DECLARATIONS = ("program", "level", "bucket", "value", "call", "buffer")


class ProgramError(ValueError):
    """A Program can't be read, or the checker refuses it: a defect of ours. `problems` holds one line each."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclass(frozen=True)
class Level:
    """One digit of a rank: a level group holds the ranks that differ in this digit only."""

    state: State
    """The state that is cut along this digit; R: replicas."""
    index: int
    """Position among the levels; 0 is the fastest digit."""
    size: int
    stride: int
    """Product of the sizes of the levels before."""
    link: Link
    """'near' if the group stays inside a host."""

    @property
    def name(self) -> str:
        return f"{self.state}{self.index}"

    def digit(self, rank: int) -> int:
        """Place of a rank in its group."""
        return rank // self.stride % self.size

    def groups(self, world: int) -> list[tuple[int, ...]]:
        """All groups of this level, ranks rising: [(0, 1), (2, 3)] for size 2, stride 1, world 4."""
        firsts = [rank for rank in range(world) if self.digit(rank) == 0]
        return [tuple(first + digit * self.stride for digit in range(self.size)) for first in firsts]


@dataclass(frozen=True)
class FlatBucket:
    """Neighbouring parameters as one flat buffer; frozen ones are only held and gathered."""

    numel: int
    """Elements, padded so that every owner has an equal slice."""
    grads: tuple[str, ...]
    """Gradients of its parameters, in order of placement, as values (`%g0`)."""
    trained: bool = True


@dataclass(frozen=True)
class Value:
    """What one call hands to another: `%h0`, in every micro-batch."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Call:
    """A call of a compiled region. Its operands are `reads`, then the gathered parameters of `buckets`."""

    name: str
    reads: tuple[str, ...]
    buckets: tuple[int, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True)
class Buffer:
    """Memory that belongs to a bucket, or `norm`."""

    name: str
    bytes: int
    persistent: bool


@dataclass(frozen=True)
class Instruction:
    """One line of a Program; its number is its place in `Program.instructions`."""

    lane: Lane
    kind: Kind
    what: str
    """A call's name, `bucket[3]`, `all`, or `-`."""
    micro_batch: int | None
    level: str | None
    """A level's name, or 'all' for the whole world."""
    bytes: int
    """Sent by each rank: n - n / s for an all-gather of n bytes over s ranks; twice that, padded, for an all-reduce."""
    cost: int
    """Predicted duration, in nanoseconds."""
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    """For `free`: what ends here."""
    after: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """One training step of every rank. Without instructions it is what the scheduler starts from."""

    world: int
    micro_batches: int
    mode: Mode
    """'ordered': a micro-batch is reduced over all levels before it is accumulated; 'invariant': in a binary tree."""
    param_bytes: int
    """Bytes of one parameter element in the compute dtype."""
    wire_bytes: int
    """Bytes of one gradient element as it travels; gradients are kept and added in fp32."""
    window_bytes: int
    """Gathered parameters, and separately packed gradients, that may be alive at once; 0: any number."""
    loss: tuple[str, ...]
    """Values summed over micro-batches and ranks together with the norm: the loss's sum and count."""
    levels: tuple[Level, ...]
    buckets: tuple[FlatBucket, ...]
    values: tuple[Value, ...]
    calls: tuple[Call, ...]
    buffers: tuple[Buffer, ...] = ()
    instructions: tuple[Instruction, ...] = ()

    @cached_property
    def text(self) -> str:
        """One line for each part, equal on all ranks and in C++."""
        return "".join(f"{line}\n" for line in _lines(self))

    @property
    def hash(self) -> str:
        """SHA-256 of the text, in hexadecimal. Ranks compare it before step 1."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def json(self) -> str:
        """For tools; only the text is read back."""
        return json.dumps(asdict(self), indent=1)


def _lines(program: Program) -> Iterator[str]:
    yield (
        f"program v1 world={program.world} micro_batches={program.micro_batches} mode={program.mode} "
        f"param_bytes={program.param_bytes} wire_bytes={program.wire_bytes} window_bytes={program.window_bytes} "
        f"loss={_join(program.loss)}"
    )
    yield from (f"level {each.name} size={each.size} stride={each.stride} link={each.link}" for each in program.levels)
    for index, bucket in enumerate(program.buckets):
        yield f"bucket {index} numel={bucket.numel} grads={_join(bucket.grads)}{'' if bucket.trained else ' frozen'}"
    yield from (f"value {value.name} bytes={value.bytes}" for value in program.values)
    for call in program.calls:
        yield f"call {call.name} reads={_join(call.reads)} buckets={_join(call.buckets)} writes={_join(call.writes)}"
    yield from (f"buffer {each.name} bytes={each.bytes} {LIFETIMES[not each.persistent]}" for each in program.buffers)
    for number, i in enumerate(program.instructions):
        micro_batch = "-" if i.micro_batch is None else i.micro_batch
        yield (
            f"{number:<4} {i.lane:<9} {i.kind:<10} {i.what:<14} m={micro_batch:<2} level={i.level or '-':<4} "
            f"bytes={i.bytes:<9} cost={i.cost:<7} "
            f"reads={_join(i.reads)} writes={_join(i.writes)} after={_join(i.after)}"
        )


def parse_program(text: str) -> Program:
    """Read what `Program.text` wrote.

    Raises:
        ProgramError: with the number of the line that can't be read.
    """
    lines = [_Line.split(number, text) for number, text in enumerate(text.splitlines(), 1)]
    declared = {name: [line for line in lines if line.words[0] == name] for name in _DECLARATIONS}
    numbered = [line for line in lines if line.words[0] not in declared]
    if not lines or lines[0].words != ("program", "v1") or len(declared["program"]) > 1:
        raise ProgramError("line 1: a Program starts with its only line 'program v1 ...'")
    return Program(
        world=lines[0].integer("world"),
        micro_batches=lines[0].integer("micro_batches"),
        mode=lines[0].choice(lines[0].field("mode"), get_args(Mode)),
        param_bytes=lines[0].integer("param_bytes"),
        wire_bytes=lines[0].integer("wire_bytes"),
        window_bytes=lines[0].integer("window_bytes"),
        loss=lines[0].names("loss"),
        levels=tuple(_read_level(line) for line in declared["level"]),
        buckets=tuple(
            FlatBucket(line.integer("numel"), line.names("grads"), "frozen" not in line.words)
            for line in declared["bucket"]
        ),
        values=tuple(Value(line.word(1), line.integer("bytes")) for line in declared["value"]),
        calls=tuple(
            Call(line.word(1), line.names("reads"), line.integers("buckets"), line.names("writes"))
            for line in declared["call"]
        ),
        buffers=tuple(_read_buffer(line) for line in declared["buffer"]),
        instructions=tuple(_read_instruction(line, number) for number, line in enumerate(numbered)),
    )


def _read_level(line: "_Line") -> Level:
    name, link = line.word(1), line.choice(line.field("link"), get_args(Link))
    state = line.choice(name.rstrip("0123456789"), get_args(State))
    return Level(state, line.as_integer(name.removeprefix(state)), line.integer("size"), line.integer("stride"), link)


def _read_buffer(line: "_Line") -> Buffer:
    return Buffer(line.word(1), line.integer("bytes"), line.choice(line.word(2), LIFETIMES) == "persistent")


def _read_instruction(line: "_Line", number: int) -> Instruction:
    if line.word(0) != str(number):
        raise ProgramError(f"line {line.number}: expected instruction {number}, found {line.word(0)!r}")
    return Instruction(
        lane=line.choice(line.word(1), LANES),
        kind=line.choice(line.word(2), KINDS),
        what=line.word(3),
        micro_batch=None if line.field("m") == "-" else line.integer("m"),
        level=None if line.field("level") == "-" else line.field("level"),
        bytes=line.integer("bytes"),
        cost=line.integer("cost"),
        reads=line.names("reads"),
        writes=line.names("writes"),
        after=line.integers("after"),
    )


@dataclass(frozen=True)
class _Line:
    """A line of text: words, then key=value fields."""

    number: int
    words: tuple[str, ...]
    fields: Mapping[str, str]

    @classmethod
    def split(cls, number: int, text: str) -> "_Line":
        words = tuple(word for word in text.split() if "=" not in word)
        return cls(number, words or ("",), dict(word.split("=", 1) for word in text.split() if "=" in word))

    def word(self, place: int) -> str:
        if place >= len(self.words):
            raise ProgramError(f"line {self.number}: word {place + 1} is missing")
        return self.words[place]

    def field(self, key: str) -> str:
        if key not in self.fields:
            raise ProgramError(f"line {self.number}: {key}= is missing")
        return self.fields[key]

    def choice(self, found: str, choices: tuple[Name, ...]) -> Name:
        if found not in choices:
            raise ProgramError(f"line {self.number}: {found!r} is none of {', '.join(choices)}")
        return choices[choices.index(found)]

    def as_integer(self, found: str) -> int:
        if not found.isdecimal():
            raise ProgramError(f"line {self.number}: {found!r} is not a whole number")
        return int(found)

    def integer(self, key: str) -> int:
        return self.as_integer(self.field(key))

    def names(self, key: str) -> tuple[str, ...]:
        return tuple(name for name in self.field(key).split(",") if name != "-")

    def integers(self, key: str) -> tuple[int, ...]:
        return tuple(self.as_integer(name) for name in self.names(key))


def _join(items: Iterable[object]) -> str:
    return ",".join(map(str, items)) or "-"
