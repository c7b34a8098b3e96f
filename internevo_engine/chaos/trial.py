"""chaos: one trial: a small run through the real command line with one fault in it, started again until it is done.

A trial is a pure function of (seed, number): point, rank, moment and action are drawn from the table of
csrc/core/faults.h. What came of it is judged by history.py.
"""

import errno
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from internevo_engine import _core
from internevo_engine.faults import VARIABLE

STEPS = 6
EVERY = 2
WORLD = 2
MOST_STARTS = 4
TIMEOUT_S = 300.0
MARK = "IE_CHAOS_TRIAL"
"""In the environment of every process of a trial."""

CONFIG = f"""\
model: {{family: internlm2, vocab: 64, layers: 2, hidden: 32, heads: 4, kv_heads: 2, ffn: 64, dtype: fp32}}
data: {{train: random, seq_len: 16, micro_batch: 2, grad_accum: 2}}
optim: {{lr: 1e-2, eta_min: 1e-3}}
comm: {{reduction: ordered, bucket_mb: 0.02}}
graph: {{compile: eager}}
launch: {{nproc: {WORLD}, device: cpu, restarts: 0}}
run: {{steps: {STEPS}, guard: full, allow_faults: true}}
checkpoint: {{every: {EVERY}, keep: 1}}
"""

NOT_DRAWN = {"stop": "nothing is wrong until somebody waits too long", "flip of gradient": "nobody claims to see it"}
"""Actions that trials leave out, and why."""
SIZES = {"1/1/2": (1, 1, 2), "2/2/2": (2, 2, 2)}
"""Group sizes of a trial; reduction is ordered, so all give the golden bits."""
NEEDED = {"gather": "2/2/2", "refresh": "1/1/2", "weights": "1/1/2"}
"""Where a point is passed with one of them only; gathered weights that flip are used once, and nobody sees it."""
ONCE_A_STEP = ("data", "step")
STORAGE = ("load", "create", "write", "sync", "publish", "remove")
NUMBERS: Mapping[str, tuple[int, ...]] = {
    "exit": (1, 139),
    "delay": (200,),
    "flip": (3, 20, 30),
    "errno": (errno.EIO, errno.ENOSPC),
}
"""What actions take."""


@dataclass(frozen=True)
class Trial:
    """What goes wrong."""

    seed: int
    number: int
    point: str
    rank: int
    when: str
    action: str
    sizes: str
    """Of SIZES."""

    @property
    def plan(self) -> str:
        """As IE_FAULTS has it."""
        return f"{self.point}@{self.rank}:{self.when}:{self.action}"

    @property
    def kind(self) -> str:
        """What trials are counted by."""
        return f"{self.point} {self.action.split('=')[0]}"


@dataclass(frozen=True)
class Start:
    """The command once."""

    code: int
    errors: str


def kinds() -> list[tuple[str, str]]:
    """(point, action) of everything that is drawn; a point that this configuration does not pass is not."""
    rows = [(name, action) for name, _, actions in _core.fault_points() for action in actions.split()]
    return [
        (name, action)
        for name, action in rows
        if name != "evaluate"  # nothing is held out here
        and action not in NOT_DRAWN
        and f"{action} of {name}" not in NOT_DRAWN
    ]


def draw(seed: int, number: int) -> Trial:
    """Kinds take turns, in an order that the seed shuffles; the rest is drawn."""
    order = kinds()
    Random(f"chaos {seed}").shuffle(order)
    point, action = order[number % len(order)]
    random = Random(f"chaos {seed} {number}")
    rank = random.randrange(WORLD)
    if point in ("publish", "remove"):
        rank = 0
    values = NUMBERS.get(action, ())
    suffix = f"={random.choice(values)}" if values else ""
    sizes = NEEDED.get(point) or random.choice(sorted(SIZES))
    return Trial(seed, number, point, rank, _when(point, random), action + suffix, sizes)


def _when(point: str, random: Random) -> str:
    if point in STORAGE:
        return f"hit={random.randrange(1, 2 if point == 'remove' else 4)}"
    if point in ONCE_A_STEP or random.random() < 0.5:
        return f"step={random.randrange(1, STEPS + 1)}"
    return f"hit={random.randrange(1, 40)}"


def run(trial: Trial | None, folder: Path) -> list[Start]:
    """Start the command until it ends with 0, or too often; None: without a fault, for the golden bits."""
    folder.mkdir(parents=True)
    (folder / "tmp").mkdir()
    (folder / "chaos.yaml").write_text(CONFIG + f"# {trial}\n")
    environment = os.environ | {MARK: uuid.uuid4().hex, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    if trial is not None:
        environment[VARIABLE] = trial.plan
    (folder / "mark").write_text(environment[MARK])
    starts: list[Start] = []
    while not starts or (starts[-1].code != 0 and len(starts) < MOST_STARTS):
        starts.append(_start(folder, environment, SIZES[trial.sizes if trial else "1/1/2"]))
    return starts


def _start(folder: Path, environment: Mapping[str, str], sizes: tuple[int, int, int]) -> Start:
    command = [sys.executable, "-m", "internevo_engine.run", str(folder / "chaos.yaml"), f"run.dir={folder / 'run'}"]
    command += [f"zero.{state}={size}" for state, size in zip(("param", "grad", "optim"), sizes, strict=True)]
    with (folder / "output.txt").open("a") as output, (folder / "errors.txt").open("w+") as errors:
        try:
            done = subprocess.run(
                command, env=environment, stdout=output, stderr=errors, check=False, timeout=TIMEOUT_S
            )
            code = done.returncode
        except subprocess.TimeoutExpired:
            code = -1
        errors.seek(0)
        return Start(code, errors.read())
