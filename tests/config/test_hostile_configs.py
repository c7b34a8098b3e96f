"""Config files by strangers: each is refused with one ConfigError, in bounded time and memory, whatever it holds."""

import os
import random
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from internevo_engine.config.load import load_config
from internevo_engine.errors import ConfigError
from tests.config.test_load import GOOD

SEEDS = range(8)
"""Of each kind."""
SECONDS = 2.0
"""Of processor time for one file; the largest that is parsed takes a fraction of it."""

Draw = random.Random


def anywhere(draw: Draw, what: str) -> str:
    lines = GOOD.splitlines(keepends=True)
    lines.insert(draw.randrange(len(lines) + 1), what)
    return "".join(lines)


def word(draw: Draw) -> str:
    return "".join(draw.choices("abcdefghijklmnopqrstuvwxyz_", k=draw.randrange(3, 30)))


def bomb(draw: Draw) -> str:
    """Each level names the one before several times."""
    width, levels = draw.randrange(2, 12), draw.randrange(8, 30)
    lines = ["a0: &a0 lol"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return GOOD + "\n".join(lines) + "\n"


def deep(draw: Draw) -> str:
    open_, close = draw.choice([("[", "]"), ("{a: ", "}")])
    depth = draw.choice([40, 1000, 10_000])
    return GOOD + f"run: {open_ * depth}1{close * depth * draw.randrange(2)}\n"


def blocks(draw: Draw) -> str:
    return GOOD + "".join(" " * n + "a:\n" for n in range(draw.randrange(40, 300)))


NUMBERS = ("layers", "hidden", "heads", "ffn", "vocab")
KINDS: dict[str, Callable[[Draw], str]] = {
    "unknown section": lambda draw: GOOD + f"{word(draw)}: {{{word(draw)}: 1}}\n",
    "unknown key": lambda draw: GOOD + f"optim: {{{word(draw)}: 1}}\n",
    "key of 50 KB": lambda draw: GOOD + f"? {word(draw) * 1700}\n: 1\n"[:50_000],
    "key that is a list": lambda draw: GOOD + f"? [{word(draw)}, [1, 2]]\n: 1\n",
    "key twice": lambda draw: GOOD + f"run: {{{(key := draw.choice(['steps', 'seed']))}: 1, {key}: 2}}\n",
    "alias bomb": bomb,
    "alias of itself": lambda draw: GOOD + f"run: &{(name := word(draw))} [*{name}]\n",
    "merge key": lambda draw: GOOD + f"x: &{(name := word(draw))} {{steps: 1}}\nrun: {{<<: *{name}}}\n",
    "deep nesting": deep,
    "deep blocks": blocks,
    "tag that builds": lambda draw: (
        GOOD + f"run: !!python/object/{draw.choice(['apply', 'new'])}:os.{draw.choice(['system', 'popen'])} [id]\n"
    ),
    "tag that imports": lambda draw: GOOD + f"run: !!python/module:{word(draw)}\n",
    "control byte": lambda draw: anywhere(draw, f"# {chr(draw.choice([0, 1, 7, 8, 27, 0x7F]))}\n"),
    "tab": lambda draw: anywhere(draw, "\trun:\n"),
    "not finite": lambda draw: GOOD + f"optim: {{lr: {draw.choice(['.nan', '.inf', '-.inf', '1e999', '1e400'])}}}\n",
    "number of 5000 digits": lambda draw: GOOD + f"run: {{steps: {draw.randrange(1, 9)}{'0' * 5000}}}\n",
    "huge number": lambda draw: re.sub(
        rf"{draw.choice(NUMBERS)}: [0-9]+",
        lambda m: f"{m[0].split(':')[0]}: {1 << draw.choice([31, 60, 64, 200])}",
        GOOD,
    ),
    "negative": lambda draw: GOOD + f"run: {{steps: -{draw.randrange(1, 1 << 62)}}}\n",
    "text for a number": lambda draw: GOOD + f"run: {{steps: {word(draw)}}}\n",
    "list for a section": lambda draw: GOOD + f"optim: [{word(draw)}, 1]\n",
    "not a mapping": lambda draw: f"- {word(draw)}\n" * draw.randrange(1, 2000),
    "half a file": lambda draw: GOOD[: draw.randrange(10, len(GOOD) // 2)],
    "only brackets": lambda draw: draw.choice("[{") * draw.randrange(1, 60_000),
    "too large": lambda draw: GOOD + "#" * draw.randrange(1 << 16, 1 << 22),
}


def refusal(path: Path) -> str:
    """What is said, or what is wrong with how it is said."""
    started = time.process_time()
    try:
        load_config(path)
    except ConfigError as error:
        seconds = time.process_time() - started
        text = str(error)
        if seconds > SECONDS or len(text) > 60_000 or path.name not in text:
            return f"WRONG after {seconds:.1f} s: {text[:500]}"
        return text
    return "WRONG: it was accepted"


def write_all(folder: Path) -> list[Path]:
    paths = [folder / f"{kind.replace(' ', '-')}.{seed}.yaml" for kind in KINDS for seed in SEEDS]
    for path in paths:
        kind, seed = path.stem.rsplit(".", 1)
        path.write_text(KINDS[kind.replace("-", " ")](random.Random(f"{kind} {seed}")))
    return paths


def test_the_corpus_is_refused_in_bounded_time(tmp_path: Path) -> None:
    paths = write_all(tmp_path)
    assert len(paths) > 180
    wrong = {path.name: text for path in paths if (text := refusal(path)).startswith("WRONG")}
    assert not wrong


def test_the_corpus_is_refused_in_little_memory(tmp_path: Path) -> None:
    """In a process of its own, which may not have more than 512 MB."""
    write_all(tmp_path)
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-m", "tests.config.test_hostile_configs", tmp_path],
        cwd=root, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20)),
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")


PLACES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "nothing": lambda path: path.symlink_to("nowhere"),
    "itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("what", PLACES)
def test_what_is_no_file_is_refused_also_as_base(tmp_path: Path, what: str) -> None:
    PLACES[what](tmp_path / "place.yaml")
    (tmp_path / "c.yaml").write_text("base: place.yaml\n" + GOOD)
    for name in ("place.yaml", "c.yaml"):
        with pytest.raises(ConfigError, match=r"place\.yaml"):
            load_config(tmp_path / name)


@pytest.mark.parametrize("raw", [b"\xff\xfe\x00", b"\x80abc", b"\xed\xa0\x80"])
def test_what_is_no_text_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "c.yaml").write_bytes(raw)
    assert "WRONG" not in refusal(tmp_path / "c.yaml")


@pytest.mark.parametrize("value", ["[" * 10_000, "&a [*a]", "!!python/name:os.system", "\0", "9" * 5000, "{a: " * 99])
def test_overrides_by_strangers_are_refused(tmp_path: Path, value: str) -> None:
    (tmp_path / "c.yaml").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"run\.steps"):
        load_config(tmp_path / "c.yaml", [f"run.steps={value}"])


if __name__ == "__main__":
    sys.exit("\n".join(text for path in sorted(Path(sys.argv[1]).iterdir()) if "WRONG" in (text := refusal(path))) or 0)
