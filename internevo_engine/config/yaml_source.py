"""config: YAML as a tree of plain values that remembers where each key stood.

Stricter than PyYAML's defaults, which read `1e-4` as text, `no` as False, `12:30` as 750, `010` as 8 and let a
second equal key win silently: here numbers are JSON's, the only booleans are true and false, and a second
equal key is a problem. A file is read as if a stranger wrote it: bounded in size and depth, without
aliases and tags.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, nan
from pathlib import Path
from typing import Any

import yaml

from internevo_engine.errors import ConfigError

KeyPath = tuple[str, ...]

MAX_BYTES = 1 << 16
MAX_DEPTH = 32
_MAX_DIGITS = 300
"""Of a number; longer ones are text."""
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)\Z")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\Z")
_WORDS: Mapping[str, Any] = {
    **{"true": True, "false": False, "null": None, "~": None, "": None},
    **{".inf": inf, "+.inf": inf, "-.inf": -inf, ".nan": nan},
}


@dataclass
class Source:
    """A YAML file or a set of overrides: values, the place of each key, and what was wrong with it."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def update(self, other: "Source") -> None:
        """Let `other` win, key by key; its places win too."""
        _merge(self.values, other.values)
        self.places.update(other.places)
        self.problems += other.problems

    def place(self, path: KeyPath) -> str:
        """Where the key stands, or the nearest key above it that stands anywhere."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "config")


def read_file(path: Path) -> Source:
    """Parse one YAML file.

    Raises:
        ConfigError: the file can't be read or is not YAML.
    """
    try:
        root = _compose(_read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    source = Source(places={(): str(path)})
    if isinstance(root, yaml.MappingNode):
        source.values = _mapping(root, (), str(path), source)
    elif root is not None:
        source.problems.append(f"{path}:1: the file must be a mapping of sections, such as `model:`")
    return source


def read_override(text: str) -> Source:
    """Parse `section.key=value`; the value is read by the same rules as in a file."""
    name, separator, value = text.partition("=")
    path = tuple(name.split("."))
    if not separator or not all(path):
        return Source(problems=[f"{text}: an override is written section.key=value"])
    try:
        node = _compose(value)
    except yaml.YAMLError:
        return Source(problems=[f"{text}: the value is not valid YAML; quote it if it is text"])
    source = Source(places={path: f"override {text}"})
    tree = None if node is None else _value(node, path, f"override {text}", source)
    for key in reversed(path):
        tree = {key: tree}
    assert isinstance(tree, dict)
    source.values = tree
    return source


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_BYTES} bytes; no config is: is it another file?")
    return raw.decode("utf-8")


def _compose(text: str) -> yaml.Node | None:
    """The tree of the text, whose size bounds the tree's: every node is written out.

    Raises:
        yaml.YAMLError: it is not YAML, nested deeper than MAX_DEPTH, or has tags or aliases.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        mark: Any = event.start_mark  # the stubs know two classes of marks
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH}", problem_mark=mark)
        if getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(problem="tags (!name) aren't read; leave it out", problem_mark=mark)
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) aren't read; write it out, or use base:", problem_mark=mark
            )
    return yaml.compose(text, Loader=yaml.SafeLoader)


def _mapping(node: yaml.MappingNode, path: KeyPath, file: str, source: Source) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        here = (*path, key)
        place = f"{file}:{key_node.start_mark.line + 1}"
        if key in result:
            source.problems.append(
                f"{place}: {'.'.join(here)} is given twice; the first is at {source.places[here]}; remove one"
            )
            continue
        source.places[here] = place
        result[key] = _value(value_node, here, file, source)
    return result


def _value(node: yaml.Node, path: KeyPath, file: str, source: Source) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, file, source)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, path, file, source) for item in node.value]
    assert isinstance(node, yaml.ScalarNode)
    return node.value if node.style in ("'", '"', "|", ">") else _scalar(node.value)


def _scalar(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _MAX_DIGITS:
        return text
    if _INT.match(text):
        return int(text)
    return float(text) if _FLOAT.match(text) else text


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value)
        else:
            into[key] = value
