"""runtime: RUN/failure.json: who failed, and what every rank did last. Written by the parent from the board.

It needs nothing of the ranks themselves, who may be dead or stopped. The text of an instruction is that of
RUN/program.txt, which rank 0 leaves before the first step.
"""

import json
import os
import signal
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from internevo_engine.errors import UsageError
from internevo_engine.runtime.attempt import Attempt, End

FILE = "failure.json"
PROGRAM = "program.txt"
NUM_INSTRUCTIONS = 16


def write_failure(run: Path, attempt: Attempt, end: End, then: str) -> None:
    """Replace RUN/failure.json, whole or not at all; nothing where the attempt did not come so far as to have a run.

    Args:
        then: what happens next, for people.
    """
    if not (run / "run.json").is_file():
        return
    record = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "host": socket.gethostname(),
        "attempt": attempt.number + 1,
        "code": end.code,
        "culprit": end.culprit,
        "cause": end.cause,
        "then": then,
        "ranks": [_rank(attempt, rank, _lines(run / PROGRAM)) for rank in range(attempt.board.world)],
    }
    partial = run / f".{FILE}.partial"
    partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, run / FILE)


def show(run: Path) -> str:
    """RUN/failure.json for people.

    Raises:
        UsageError: there is none.
    """
    if not (run / FILE).is_file():
        raise UsageError(f"{run} holds no {FILE}: it is no run folder, or nothing failed there")
    record = json.loads((run / FILE).read_text(encoding="utf-8"))
    lines = [
        f"attempt {record['attempt']} ended with code {record['code']} at {record['time']} on {record['host']}",
        f"cause: {record['cause']}",
        f"then: {record['then']}",
    ]
    for rank in record["ranks"]:
        lines.append(f"rank {rank['rank']} {rank['end']}: {rank['phase']} for {rank['phase_s']} s, step {rank['step']}")
        lines += [f"  {i['ago_s']:>9.3f} s ago  step {i['step']}  {i['text']}" for i in rank["instructions"]]
        lines += [f"  | {line}" for line in rank["words"].splitlines()]
    return "\n".join(lines)


def _rank(attempt: Attempt, rank: int, program: dict[int, str]) -> dict[str, Any]:
    slot, now_ns = attempt.board.read(rank), time.monotonic_ns()

    def ago_s(time_ns: int) -> float:
        return round((now_ns - time_ns) / 1e9, 3)

    return {
        "rank": rank,
        "end": _text_of(attempt.codes[rank]),
        "phase": slot["phase"],
        "phase_s": ago_s(slot["phase_began_ns"]),
        "step": slot["step"],
        "instructions": [
            {"number": number, "text": program.get(number, str(number)), "step": step, "ago_s": ago_s(time_ns)}
            for step, number, time_ns in slot["begun"][-NUM_INSTRUCTIONS:]
        ],
        "words": attempt.words(rank),
    }


def _text_of(code: int | None) -> str:
    if code is None:
        return "had to be ended"
    return f"ended with code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"


def _lines(program: Path) -> dict[int, str]:
    """Instructions of a printed Program by their number, without padding."""
    text = program.read_text(encoding="utf-8") if program.is_file() else ""
    lines = (line.split() for line in text.splitlines())
    return {int(words[0]): " ".join(words) for words in lines if words and words[0].isdigit()}
