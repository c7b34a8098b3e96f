"""runtime: after an audited step (run.guard=full): did every message arrive as it was sent, and did the optimizer
states keep their bits since the last update? If not, who is to blame.

The sums are csrc/runtime/audit.h's, and where they don't agree no rank has updated anything. Then, and only then, the
ranks tell each other what they sent and received.
"""

import json
from collections.abc import Iterator, Sequence

from internevo_engine.errors import CorruptionError
from internevo_engine.program import Instruction, Program
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.runtime.executor import Executor

Account = tuple[Sequence[int], Sequence[int]]
"""Checksums of what a rank sent to each member of its group and received from it."""


def check(executor: Executor, program: Program, communicator: Communicator, step: int) -> None:
    """Raises CorruptionError, the same on all ranks, for the first instruction or bucket whose sums don't agree."""
    broken = next((number for number, balance in enumerate(executor.audit_total()) if balance), None)
    if broken is None:
        return
    at_rest = broken - len(program.instructions)
    if at_rest >= 0:
        own = communicator.agree("changed", str(executor.audit_own()[broken]))
        who = " and ".join(f"rank {rank}" for rank, balance in enumerate(own) if balance != "0")
        what = f"weights or moments of bucket {at_rest} changed on {who} between two updates: its memory is faulty"
    else:
        texts = communicator.agree("messages", json.dumps(executor.messages(broken)))
        instruction = program.instructions[broken]
        pairs = broken_pairs([json.loads(text) for text in texts], groups_of(instruction, program))
        what = "; ".join(
            f"what rank {receiver} received from rank {sender} is not what was sent" for sender, receiver in pairs
        )
        what += f" ({instruction.kind} of {instruction.what}, instruction {broken}): a link or a memory is faulty"
    raise CorruptionError(f"step {step}: {what}; nothing was updated: start again from the newest checkpoint")


def groups_of(instruction: Instruction, program: Program) -> tuple[tuple[int, ...], ...]:
    """The ranks that meet in a transfer."""
    level = next(level for level in program.levels if level.name == instruction.level)
    return tuple(tuple(group) for group in level.groups(program.world))


def broken_pairs(accounts: Sequence[Account], groups: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """(sender, receiver) of every message that did not arrive as it was sent; accounts of each rank."""
    for group in groups:
        for i, sender in enumerate(group):
            for j, receiver in enumerate(group):
                if accounts[sender][0][j] != accounts[receiver][1][i]:
                    yield sender, receiver
