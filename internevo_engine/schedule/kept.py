"""schedule: text files that a later start finds again. Serves captured.py and runtime/stored_costs.py.

They are in $XDG_CACHE_HOME/internevo_engine (~/.cache where that is unset). A file's name is a hash of all that its
content depends on, so what depends on something else is another file.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


def kept_path(folder: str, depends_on: Mapping[str, object]) -> Path:
    """Where it is, if it is there."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = json.dumps(depends_on, sort_keys=True)
    return root / "internevo_engine" / folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def keep(path: Path, text: str) -> None:
    """Write the file; it appears whole.

    Raises:
        OSError: the folder can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(text)
    os.replace(file.name, path)
