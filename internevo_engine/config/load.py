"""config: from a YAML file and overrides to a frozen `Config`, or to all problems at once, each with its place."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from internevo_engine.config.schema import FREE_KEYS, Config, StepConfig
from internevo_engine.config.yaml_source import KeyPath, Source, read_file, read_override
from internevo_engine.errors import ConfigError

MAX_SHOWN = 200
"""Characters of a wrong value in an error."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path`, the files it names as `base:`, and `section.key=value` overrides, in rising priority.

    Raises:
        ConfigError: every problem found, one line each: place, key, what was found, what to change.
    """
    source = _read_with_base(Path(path), ())
    for text in overrides:
        source.update(read_override(text))
    run = source.values.setdefault("run", {})
    if isinstance(run, dict) and run.get("dir") is None:
        run["dir"] = f"runs/{Path(path).stem}"
    return _validate(source)


def step_config(**keys: object) -> StepConfig:
    """The settings of an Engine from its arguments; a section is a config object or a mapping of its keys.

    Raises:
        ConfigError: every problem found, one line each.
    """
    try:
        return StepConfig.model_validate(keys)
    except ValidationError as error:
        raise ConfigError(*_explain(error, Source(places={(): "Engine"}), StepConfig)) from None


def dump_config(config: Config) -> str:
    """YAML with every key, defaults included; `load_config` reads it back to an equal Config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def numeric_differences(old: Config, new: Config) -> list[str]:
    """Keys that shape the numbers and differ, as `optim.lr: 0.001 -> 0.003`."""
    before, after = dict(_flatten(old)), dict(_flatten(new))
    return [
        f"{key}: {before[key]} -> {after[key]}"
        for key in before
        if not key.startswith(FREE_KEYS) and before[key] != after[key]
    ]


def _flatten(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section:
        if isinstance(value, BaseModel):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read_with_base(path: Path, seen: tuple[Path, ...]) -> Source:
    if path.is_dir():
        raise ConfigError(
            f"{path} is a folder; name a YAML file in it, such as {next(path.glob('*.yaml'), 'demo.yaml')}"
        )
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        asked_by = f" (named as base by {seen[-1]})" if seen else ""
        raise ConfigError(f"{path}: no such file{asked_by}{hint}")
    if path.resolve() in seen:
        raise ConfigError(f"{path}: base files form a circle: {' -> '.join(p.name for p in (*seen, path))}")
    source = read_file(path)
    base = source.values.pop("base", None)
    if base is None:
        return source
    if not isinstance(base, str):
        raise ConfigError(f"{source.place(('base',))}: base must be the path of another YAML file, found {base!r}")
    merged = _read_with_base(path.parent / base, (*seen, path.resolve()))
    merged.update(source)
    return merged


def _validate(source: Source) -> Config:
    sections = {
        key: {} if value is None and key in Config.model_fields else value for key, value in source.values.items()
    }
    try:
        config = Config.model_validate(sections)
    except ValidationError as error:
        raise ConfigError(*source.problems, *_explain(error, source)) from None
    if source.problems:
        raise ConfigError(*source.problems)
    return config


def _explain(error: ValidationError, source: Source, root: type[BaseModel] = Config) -> list[str]:
    """One line a key. The members of a union complain one by one; what they expect is joined by 'or'."""
    texts: dict[KeyPath, list[str]] = {}
    found: dict[KeyPath, Any] = {}
    for problem in error.errors(include_url=False):
        path = _known_path(problem["loc"], root)
        match problem["type"]:
            case "extra_forbidden":
                path = tuple(str(part) for part in problem["loc"])
                text = f"unknown key{_nearest(path, root)}"
            case "missing" if path == problem["loc"]:
                text = "is required but not given"
            case "missing":
                text, found[path] = "has too few items", problem["input"]
            case "value_error":
                text = problem["msg"].removeprefix("Value error, ")
            case _:
                text = problem["msg"][0].lower() + problem["msg"][1:].replace("Input should", "should")
                found[path] = problem["input"]
        texts.setdefault(path, []).append(text.removeprefix("input "))
    return [_line(path, lines, found, source) for path, lines in texts.items()]


def _line(path: KeyPath, texts: Sequence[str], found: dict[KeyPath, Any], source: Source) -> str:
    parts = [texts[0], *(text.removeprefix("should be ") for text in texts[1:])]
    value = f", found {_shortened(repr(found[path]))}" if path in found else ""
    return f"{source.place(path)}: {'.'.join(path)}: {' or '.join(dict.fromkeys(parts))}{value}"


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _known_path(location: Iterable[int | str], root: type[BaseModel]) -> KeyPath:
    """The part of a pydantic location that is keys of ours; what follows names members of a union."""
    path: list[str] = []
    section: Any = root
    for part in location:
        if not (isinstance(section, type) and issubclass(section, BaseModel) and part in section.model_fields):
            break
        path.append(str(part))
        section = section.model_fields[str(part)].annotation
    return tuple(path)


def _all_keys(section: type[BaseModel], prefix: KeyPath = ()) -> Iterator[KeyPath]:
    for name, info in section.model_fields.items():
        yield (*prefix, name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _all_keys(info.annotation, (*prefix, name))


def _nearest(path: KeyPath, root: type[BaseModel]) -> str:
    """A hint: the nearest key of the section, else of another section, else the section's keys."""
    keys = list(_all_keys(root))
    siblings = {key[-1]: ".".join(key) for key in keys if key[:-1] == path[:-1]}
    elsewhere = {key[-1]: ".".join(key) for key in keys}
    for names in (siblings, elsewhere):
        near = difflib.get_close_matches(path[-1], names, n=1)
        if near:
            return f"; did you mean {names[near[0]]}?"
    return f"; known here: {', '.join(siblings)}" if siblings else ""
