"""Floor 0: faults on purpose, for tests and the `chaos` verb. The table of points is csrc/core/faults.h.

Two keys arm them, neither alone: the environment variable IE_FAULTS, which holds the plan, and run.allow_faults. A plan
is written `POINT@RANK:hit=N:ACTION`, joined by `;`: `update@1:hit=3:kill`. Code passes a point by `fault(name)`.
"""

import os
from collections.abc import Mapping

from internevo_engine import _core

VARIABLE = "IE_FAULTS"
ARMED = "FAULTS ARE ARMED: this run breaks on purpose"


def plan_of_faults(environment: Mapping[str, str], *, allowed: bool) -> str | None:
    """What to arm, or None."""
    return environment.get(VARIABLE) if allowed else None


def fault(point: str) -> tuple[str, int] | None:
    """Let happen what the plan says; what only the caller can do is returned, as (action, number)."""
    return _core.fault(point)


def fail_as_told(point: str, path: object) -> None:
    """`fault` before a system call on `path`. Raises OSError where the call is to fail."""
    told = fault(point)
    if told is not None and told[0] == "errno":
        raise OSError(told[1], os.strerror(told[1]), str(path))
