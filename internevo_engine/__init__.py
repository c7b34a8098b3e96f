"""internevo_engine: a compiled-graph training engine for large language models.

Importing the package loads neither torch nor a device; each public name is loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from internevo_engine.config.load import load_config
    from internevo_engine.config.schema import Config
    from internevo_engine.engine import Engine
    from internevo_engine.loop.train import train
    from internevo_engine.plan.plan import Plan, make_plan
    from internevo_engine.plan.topology import Topology

__version__ = "0.1.0"
__all__ = ["Config", "Engine", "Plan", "Topology", "load_config", "make_plan", "train"]

_HOME = {
    "Config": "config.schema",
    "Engine": "engine",
    "Plan": "plan.plan",
    "Topology": "plan.topology",
    "load_config": "config.load",
    "make_plan": "plan.plan",
    "train": "loop.train",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
