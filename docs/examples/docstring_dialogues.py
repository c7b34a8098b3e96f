"""Dialogues for a first fine-tuning, out of the documentation of Python's standard library, without a download.

    python docs/examples/docstring_dialogues.py data/docstrings

writes train.jsonl and valid.jsonl: a question about each public function or class, answered by the first paragraph of
its docstring. json, email and http are held out, as in the corpus python-stdlib.
"""

import ast
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HELD_OUT = {"json", "email", "http"}
SKIPPED = {"test", "tests", "idle_test", "idlelib", "site-packages", "dist-packages", "lib2to3"}
SHORTEST, LONGEST = 40, 400
"""Characters of an answer."""


def answers(path: Path, module: str) -> Iterator[tuple[str, str]]:
    """(full name, first paragraph of the docstring) of what a module documents at its top level."""
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            text = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
            if SHORTEST <= len(text) <= LONGEST:
                yield f"{module}.{node.name}", text


def dialogues(root: Path) -> Iterator[tuple[bool, str]]:
    """(is held out, a line of JSON)."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED & {*parts} or any(part.startswith("_") for part in parts):
            continue
        for name, text in answers(path, ".".join(parts)):
            turns = [("user", f"What does {name} of Python do?"), ("assistant", text)]
            record = {"messages": [{"role": role, "content": content} for role, content in turns]}
            yield parts[0] in HELD_OUT, json.dumps(record)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found = list(dialogues(Path(sysconfig.get_path("stdlib"))))
    for name, held_out in (("train", False), ("valid", True)):
        lines = [line for is_held_out, line in found if is_held_out == held_out]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{folder / name}.jsonl: {len(lines)} dialogues")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
