"""The engine and what people would pick instead, side by side; a row counts only if its losses are the engine's.

python -m pytest bench/test_peers.py [-k "2x1"] [--deepspeed-python PATH]
"""

import os
from collections.abc import Callable

import pytest

from bench.compare import Scenario
from bench.job import worlds
from bench.scenarios import LAB, here, rows
from internevo_engine.runtime.launch import find_place
from internevo_engine.runtime.machine import probe_machine

HERE = tuple(here(world) for world in worlds(probe_machine(), find_place(None, os.environ)))


@pytest.mark.parametrize(("scenario", "label"), [row for scenario in (*HERE, *LAB) for row in rows(scenario)])
def test_step(record: Callable[[Scenario, str], None], scenario: Scenario, label: str) -> None:
    record(scenario, label)
