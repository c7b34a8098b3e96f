"""The engine and what people would pick instead, side by side; a row counts only if its losses are the engine's.

python -m pytest bench/test_peers.py [-k "2x1"] [--deepspeed-python PATH]
"""

import os
from collections.abc import Callable

import pytest

from bench.compare import Scenario
from bench.job import worlds
from bench.scenarios import LAB, all_sharded, here, rows
from internevo_engine.runtime.launch import find_place
from internevo_engine.runtime.machine import probe_machine

WORLDS = worlds(probe_machine(), find_place(None, os.environ))
HERE = (*map(here, WORLDS), *(all_sharded(world) for world in WORLDS if world > 1))


@pytest.mark.parametrize(("scenario", "label"), [row for scenario in (*HERE, *LAB) for row in rows(scenario)])
def test_step(record: Callable[[Scenario, str], None], scenario: Scenario, label: str) -> None:
    record(scenario, label)
