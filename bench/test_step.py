"""Computing alone: the engine's step against eager and compiled PyTorch on one rank, with clip and AdamW.

python -m pytest bench/test_step.py
"""

from collections.abc import Callable

import pytest

from bench.compare import Scenario
from bench.job import Job
from bench.scenarios import rows
from bench.workload import Settings

SCENARIOS = tuple(
    Scenario(f"1 rank {size}", Job(1), Settings(size=size), compute=("engine", "local", "local-compiled"))
    for size in ("9M", "25M")
)


@pytest.mark.parametrize(("scenario", "label"), [row for scenario in SCENARIOS for row in rows(scenario)])
def test_step(record: Callable[[Scenario, str], None], scenario: Scenario, label: str) -> None:
    record(scenario, label)
