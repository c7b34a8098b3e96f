"""Loading a config: every problem at once, each with place, value and remedy."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from internevo_engine.config.load import dump_config, load_config, numeric_differences
from internevo_engine.errors import ConfigError

GOOD = """\
model:
  {family: internlm2, vocab: 64, layers: 1, hidden: 16, heads: 2, ffn: 32}
data:
  train: random
"""


def write(folder: Path, text: str, name: str = "c.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return [line.replace(str(path), path.name) for line in caught.value.problems]


def test_a_good_file_gets_defaults_and_a_run_folder(tmp_path):
    config = load_config(write(tmp_path, GOOD, "mine.yaml"))
    assert config.run.dir == "runs/mine"
    assert config.optim.betas == (0.9, 0.95)
    assert config.model.num_kv_heads == 2


def test_the_printed_config_reads_back_equal(tmp_path):
    config = load_config(write(tmp_path, GOOD), ["optim.lr=1e-4", "data.train=[a,b]", "zero.optim=node"])
    again = load_config(write(tmp_path, dump_config(config), "again.yaml"))
    assert again == config


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1.5E+2", 150.0), (".5", 0.5), ("3", 3.0)],
)
def test_numbers_are_numbers(tmp_path, text, value):
    path = write(tmp_path, GOOD + f"optim: {{lr: {text}, eta_min: 0}}\n")
    assert load_config(path).optim.lr == value
    assert load_config(write(tmp_path, GOOD), [f"optim.lr={text}", "optim.eta_min=0"]).optim.lr == value


@pytest.mark.parametrize("text", ["no", "12:30", "010", "'3'", "yes", "3.5", "true"])
def test_what_yaml_1_1_would_turn_into_a_number_is_refused(tmp_path, text):
    (line,) = problems(write(tmp_path, GOOD + f"run:\n  steps: {text}\n"))
    assert line.startswith("c.yaml:6: run.steps: should be a valid integer, found ")


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ("optim:\n  lrr: 1\n", "c.yaml:6: optim.lrr: unknown key; did you mean optim.lr?"),
        ("seq_len: 4\n", "c.yaml:5: seq_len: unknown key; did you mean data.seq_len?"),
        ("optim:\n  zzz: 1\n", "c.yaml:6: optim.zzz: unknown key; known here: name, lr"),
        ("run: {steps: 1}\nrun: {steps: 2}\n", "c.yaml:6: run is given twice; the first is at"),
        (
            "zero: {optim: hosts}\n",
            "c.yaml:5: zero.optim: should be a valid integer or 'node' or 'world', found 'hosts'",
        ),
        ("optim: {betas: [0.9]}\n", "c.yaml:5: optim.betas: has too few items, found [0.9]"),
        ("optim: {lr: 1e-6}\n", "c.yaml:5: optim: eta_min=1e-05 is above lr=1e-06"),
        ("run: 5\n", "c.yaml:5: run: should be"),
    ],
)
def test_a_problem_has_line_key_value_and_remedy(tmp_path, addition, expected):
    (line,) = problems(write(tmp_path, GOOD + addition))
    assert line.startswith(expected)


def test_heads_that_do_not_divide_are_named(tmp_path):
    (line,) = problems(write(tmp_path, GOOD), "model.heads=3")
    assert line.startswith("c.yaml:1: model: hidden=16 is not divisible by heads=3")
    (line,) = problems(write(tmp_path, GOOD), "model.kv_heads=3")
    assert line.endswith("kv_heads=3 does not divide heads=2; use 1 or 2")
    (line,) = problems(write(tmp_path, GOOD), "model.heads=16")
    assert "head size hidden/heads=1 must be even" in line


def test_all_problems_come_at_once(tmp_path):
    path = write(tmp_path, GOOD + "optim:\n  lrr: 1\nrun: {steps: x, steps: 2}\nzero: {optim: 0}\n")
    lines = problems(path, "data.seqlen=4", "nonsense")
    assert len(lines) == 6
    assert any(
        line.startswith("override data.seqlen=4: data.seqlen: unknown key; did you mean data.seq_len") for line in lines
    )
    assert any(line.startswith("nonsense: an override is written section.key=value") for line in lines)


def test_a_missing_key_is_named(tmp_path):
    (line,) = problems(write(tmp_path, "model: {family: llama, vocab: 8, layers: 1, hidden: 8, heads: 2}\n"))
    assert line == "c.yaml:1: model.ffn: is required but not given"


def test_base_files_are_inherited_and_errors_name_the_right_one(tmp_path):
    write(tmp_path, GOOD + "run: {steps: 7}\n", "base.yaml")
    child = write(tmp_path, "base: base.yaml\nrun: {seed: 3}\n", "child.yaml")
    config = load_config(child)
    assert (config.run.steps, config.run.seed, config.run.dir) == (7, 3, "runs/child")
    write(tmp_path, GOOD + "run: {stepss: 7}\n", "base.yaml")
    (line,) = problems(child)
    assert "base.yaml:5: run.stepss: unknown key" in line


def test_a_circle_of_bases_is_refused(tmp_path):
    write(tmp_path, "base: b.yaml\n", "a.yaml")
    write(tmp_path, "base: a.yaml\n", "b.yaml")
    assert "form a circle" in problems(tmp_path / "a.yaml")[0]


def test_a_missing_file_offers_the_nearest(tmp_path):
    write(tmp_path, GOOD, "7B.yaml")
    assert problems(tmp_path / "8B.yaml")[0].endswith(f"8B.yaml: no such file; did you mean {tmp_path / '7B.yaml'}?")


def test_broken_yaml_names_the_line(tmp_path):
    assert problems(write(tmp_path, "model: {a: [1\nb: 2\n"))[0].startswith("c.yaml:2: not valid YAML")


def test_only_keys_that_shape_numbers_count_as_another_run(tmp_path):
    path = write(tmp_path, GOOD)
    old = load_config(path)
    assert (
        numeric_differences(
            old, load_config(path, ["launch.nproc=2", "run.log_every=5", "comm.bucket_mb=1", "data.cache=x"])
        )
        == []
    )
    changed = ["optim.lr=1e-3", "data.seq_len=32", "run.seed=5", "model.norm_head=true"]
    assert numeric_differences(old, load_config(path, changed)) == [
        "model.norm_head: False -> True",
        "data.seq_len: 2048 -> 32",
        "optim.lr: 0.0001 -> 0.001",
        "run.seed: 1024 -> 5",
    ]


def test_a_config_error_takes_less_than_a_second(tmp_path):
    path = write(tmp_path, GOOD + "optim: {lrr: 1}\n")
    command = [sys.executable, "-m", "internevo_engine.run", str(path)]
    seconds = []
    for _ in range(3):  # the first fills the file cache; a busy machine may disturb one
        started = time.perf_counter()
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1.0
    assert result.returncode == 2
    assert result.stderr == f"error: {path}:5: optim.lrr: unknown key; did you mean optim.lr?\n"
