"""internevo_engine: a compiled-graph training engine for large language models.

Importing the package loads neither torch nor a device; each public name is loaded on first use.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Config": "internevo_engine.config.schema",
    "load_config": "internevo_engine.config.load",
    "Plan": "internevo_engine.plan.plan",
    "make_plan": "internevo_engine.plan.plan",
    "Topology": "internevo_engine.plan.topology",
    "Engine": "internevo_engine.engine",
    "train": "internevo_engine.loop.train",
}

__all__ = ["Config", "Engine", "Plan", "Topology", "load_config", "make_plan", "train"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
