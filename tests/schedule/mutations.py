"""Seeded edits of a Program: one small change each, of the kinds a faulty scheduler, rewrite or hand would make."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from internevo_engine.program import Instruction, Level, Program

Edit = Callable[[Program, random.Random], Program]


def mutate(program: Program, seed: int) -> tuple[str, Program]:
    """The name of an edit and the edited Program, never equal to the given one."""
    chance = random.Random(seed)
    while True:
        name = chance.choice(list(EDITS))
        edited = EDITS[name](program, chance)
        if edited != program:
            return name, edited


def reorder(program: Program, numbers: Sequence[int]) -> Program:
    """Keep the instructions `numbers`, in this order; `after` follows the instructions it names."""
    new = {old: number for number, old in enumerate(numbers)}
    return replace(
        program,
        instructions=tuple(
            replace(program.instructions[old], after=tuple(new[n] for n in program.instructions[old].after if n in new))
            for old in numbers
        ),
    )


def with_instruction(program: Program, number: int, instruction: Instruction) -> Program:
    edited = list(program.instructions)
    edited[number] = instruction
    return replace(program, instructions=tuple(edited))


def pick(program: Program, chance: random.Random, wanted: Callable[[Instruction], object]) -> int:
    return chance.choice([n for n, each in enumerate(program.instructions) if wanted(each)] or [0])


def drop(program: Program, chance: random.Random) -> Program:
    numbers = list(range(len(program.instructions)))
    numbers.remove(chance.choice(numbers))
    return reorder(program, numbers)


def swap(program: Program, chance: random.Random) -> Program:
    """Two instructions of a lane that stand close to each other trade places."""
    one = chance.randrange(len(program.instructions))
    lane = program.instructions[one].lane
    same = [n for n, each in enumerate(program.instructions) if each.lane == lane]
    other = same[min(same.index(one) + chance.choice((1, 1, 2, 5)), len(same) - 1)]
    numbers = list(range(len(program.instructions)))
    numbers[one], numbers[other] = other, one
    return reorder(program, numbers)


def shift(program: Program, chance: random.Random) -> Program:
    numbers = list(range(len(program.instructions)))
    moved = numbers.pop(chance.choice(numbers))
    place = moved + chance.choice((-20, -5, -2, -1, 1, 2, 5, 20))
    numbers.insert(min(max(place, 0), len(numbers)), moved)
    return reorder(program, numbers)


def remove_dependency(program: Program, chance: random.Random) -> Program:
    number = pick(program, chance, lambda each: each.after)
    instruction = program.instructions[number]
    lost = chance.choice(instruction.after or (0,))
    return with_instruction(program, number, replace(instruction, after=tuple(set(instruction.after) - {lost})))


def add_dependency(program: Program, chance: random.Random) -> Program:
    number = chance.randrange(len(program.instructions))
    instruction = program.instructions[number]
    more = chance.randrange(len(program.instructions))
    return with_instruction(program, number, replace(instruction, after=(*instruction.after, more)))


def free_early(program: Program, chance: random.Random) -> Program:
    """A free moves towards the start, and waits for nothing."""
    number = pick(program, chance, lambda each: each.kind == "free")
    loose = with_instruction(program, number, replace(program.instructions[number], after=()))
    numbers = list(range(len(program.instructions)))
    numbers.remove(number)
    numbers.insert(max(number - chance.choice((1, 2, 3, 8, 20)), 0), number)
    return reorder(loose, numbers)


def change_level(program: Program, chance: random.Random) -> Program:
    number = pick(program, chance, lambda each: each.level)
    names = [level.name for level in program.levels] + ["all", "G7"]
    return with_instruction(program, number, replace(program.instructions[number], level=chance.choice(names)))


def change_level_shape(program: Program, chance: random.Random) -> Program:
    if not program.levels:
        return program
    number = chance.randrange(len(program.levels))
    level: Level = program.levels[number]
    changed: Mapping[str, int] = chance.choice(({"size": level.size * 2}, {"stride": level.stride * 2}))
    return replace(program, levels=(*program.levels[:number], replace(level, **changed), *program.levels[number + 1 :]))


def change_bytes(program: Program, chance: random.Random) -> Program:
    number = pick(program, chance, lambda each: each.bytes)
    instruction = program.instructions[number]
    return with_instruction(program, number, replace(instruction, bytes=instruction.bytes * 2 + 4))


def change_buffer_bytes(program: Program, chance: random.Random) -> Program:
    number = chance.randrange(len(program.buffers))
    changed = replace(program.buffers[number], bytes=program.buffers[number].bytes * chance.choice((2, 3)))
    return replace(program, buffers=(*program.buffers[:number], changed, *program.buffers[number + 1 :]))


def change_bucket(program: Program, chance: random.Random) -> Program:
    """An instruction does its work on another bucket, operands and all."""
    number = pick(program, chance, lambda each: each.what.startswith("bucket["))
    instruction = program.instructions[number]
    old, new = instruction.what.removeprefix("bucket"), f"[{chance.randrange(len(program.buckets))}]"
    return with_instruction(
        program,
        number,
        replace(
            instruction,
            what=f"bucket{new}",
            reads=tuple(name.replace(old, new) for name in instruction.reads),
            writes=tuple(name.replace(old, new) for name in instruction.writes),
        ),
    )


def change_micro_batch(program: Program, chance: random.Random) -> Program:
    """A call works on another micro-batch, operands and all."""
    number = pick(program, chance, lambda each: each.kind == "compute")
    instruction = program.instructions[number]
    new = chance.randrange(program.micro_batches)
    old = f"%m{instruction.micro_batch}."
    return with_instruction(
        program,
        number,
        replace(
            instruction,
            micro_batch=new,
            reads=tuple(name.replace(old, f"%m{new}.") for name in instruction.reads),
            writes=tuple(name.replace(old, f"%m{new}.") for name in instruction.writes),
        ),
    )


def change_call(program: Program, chance: random.Random) -> Program:
    number = pick(program, chance, lambda each: each.kind == "compute")
    call = chance.choice(program.calls)
    return with_instruction(program, number, replace(program.instructions[number], what=call.name))


def change_reads(program: Program, chance: random.Random) -> Program:
    """One operand becomes another of the Program's, or goes."""
    number = pick(program, chance, lambda each: each.reads)
    reads = list(program.instructions[number].reads)
    place = chance.randrange(len(reads))
    reads[place : place + 1] = chance.choice(([], [chance.choice(all_names(program))]))
    return with_instruction(program, number, replace(program.instructions[number], reads=tuple(reads)))


def change_writes(program: Program, chance: random.Random) -> Program:
    number = pick(program, chance, lambda each: each.writes)
    writes = list(program.instructions[number].writes)
    place = chance.randrange(len(writes))
    writes[place : place + 1] = chance.choice(([], [chance.choice(all_names(program))]))
    return with_instruction(program, number, replace(program.instructions[number], writes=tuple(writes)))


def change_cost(program: Program, chance: random.Random) -> Program:
    number = chance.randrange(len(program.instructions))
    return with_instruction(program, number, replace(program.instructions[number], cost=chance.randrange(10_000)))


def all_names(program: Program) -> list[str]:
    return sorted({name for each in program.instructions for name in (*each.reads, *each.writes)})


EDITS: Mapping[str, Edit] = {
    "drop": drop,
    "swap": swap,
    "shift": shift,
    "remove a dependency": remove_dependency,
    "add a dependency": add_dependency,
    "free early": free_early,
    "change a level": change_level,
    "change a level's shape": change_level_shape,
    "change bytes sent": change_bytes,
    "change a buffer's bytes": change_buffer_bytes,
    "change a bucket": change_bucket,
    "change a micro-batch": change_micro_batch,
    "change a call": change_call,
    "change reads": change_reads,
    "change writes": change_writes,
    "change a cost": change_cost,
}
