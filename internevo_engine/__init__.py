"""internevo_engine: a compiled-graph training engine for large language models.

Importing the package loads neither torch nor a device; each public name is loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from internevo_engine.config.load import load_config
    from internevo_engine.config.schema import CommConfig, Config, GraphConfig, OptimConfig, ZeroConfig
    from internevo_engine.engine import Engine, StepResult
    from internevo_engine.loop.train import train
    from internevo_engine.plan.plan import Plan, make_plan
    from internevo_engine.plan.topology import Topology
    from internevo_engine.runtime.limits import Limits

__version__ = "0.1.0"
__all__ = [
    "CommConfig",
    "Config",
    "Engine",
    "GraphConfig",
    "Limits",
    "OptimConfig",
    "Plan",
    "StepResult",
    "Topology",
    "ZeroConfig",
    "load_config",
    "make_plan",
    "train",
]

_HOME = {
    "CommConfig": "config.schema",
    "Config": "config.schema",
    "Engine": "engine",
    "GraphConfig": "config.schema",
    "Limits": "runtime.limits",
    "OptimConfig": "config.schema",
    "Plan": "plan.plan",
    "StepResult": "engine",
    "Topology": "plan.topology",
    "ZeroConfig": "config.schema",
    "load_config": "config.load",
    "make_plan": "plan.plan",
    "train": "loop.train",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
