"""What overlap is worth: the engine's step with communication beside computing, after it, and without any.

python -m pytest bench/test_overlap.py
"""

import os
from collections.abc import Callable

import pytest

from bench.compare import Scenario
from bench.job import Job, worlds
from bench.scenarios import OVERLAP_LAB, overlapping, rows
from bench.workload import Settings
from internevo_engine.runtime.launch import find_place
from internevo_engine.runtime.machine import probe_machine

HERE = tuple(
    overlapping(f"overlap {world} ranks", Job(world), Settings())
    for world in worlds(probe_machine(), find_place(None, os.environ))
)


@pytest.mark.parametrize(("scenario", "label"), [row for scenario in (*HERE, *OVERLAP_LAB) for row in rows(scenario)])
def test_step(record: Callable[[Scenario, str], None], scenario: Scenario, label: str) -> None:
    record(scenario, label)
