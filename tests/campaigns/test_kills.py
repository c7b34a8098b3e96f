"""Many kills and stops of random ranks in one run, at random moments: it always comes back, with the same bits.

    python -m pytest tests/campaigns --faults 500 -s

prints how long it took from each fault to the next step.
"""

import random
import signal
import statistics
import time
from pathlib import Path

import pytest

from internevo_engine.loop.fingerprint import first_difference
from tests.conftest import Tiny, make_tiny
from tests.supervised import Supervised

STEPS_A_FAULT = 12
OPTIONS = ("graph.compile=inductor", "checkpoint.every=5", "data.valid=null")
SEED = 1024


def undisturbed(folder: Path, steps: int) -> Path:
    tiny = make_tiny(folder)
    assert Supervised(tiny, f"run.steps={steps}", *OPTIONS).end()[0] == 0
    return tiny.run


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, 6), (signal.SIGSTOP, 7)])
def test_every_fault_is_survived_and_named(
    tiny: Tiny, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config, number: signal.Signals, code: int
):
    count, draws = pytestconfig.getoption("--faults"), random.Random(SEED)
    steps = STEPS_A_FAULT * (count + 1)
    run = Supervised(tiny, f"run.steps={steps}", *OPTIONS)
    seconds, named = [], []
    for fault in range(count):
        run.until_step(STEPS_A_FAULT * fault + draws.randint(6, STEPS_A_FAULT))
        rank = draws.randrange(2)
        run.hurt(rank, number)
        hurt = time.monotonic()
        run.until_any_step()
        seconds.append(time.monotonic() - hurt)
        named.append((run.failure["code"], run.failure["culprit"]) == (code, rank))
    ended, errors = run.end()
    median, worst = statistics.median(seconds), max(seconds)
    print(f"\n{number.name}: {count} faults; seconds to the next step: median {median:.2f}, worst {worst:.2f}")
    assert ended == 0, errors
    assert all(named), named
    straight = undisturbed(tmp_path_factory.mktemp("straight"), steps)
    assert first_difference(straight, tiny.run) == f"{steps} steps are equal, bit for bit"
