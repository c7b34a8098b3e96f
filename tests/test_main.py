"""The other verbs, as a user types them."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from internevo_engine.__main__ import main
from internevo_engine.program import parse_program
from internevo_engine.run import main as run
from tests.conftest import Tiny

ROOT = Path(__file__).parent.parent


def test_show_program_prints_what_would_run(tiny: Tiny, capsys):
    assert main(["show", "program", tiny.config, "launch.nproc=2", "zero.optim=2", "data.grad_accum=2"]) == 0
    program = parse_program(capsys.readouterr().out)
    assert (program.world, program.micro_batches) == (2, 2)
    assert [level.name for level in program.levels] == ["OS0"]
    assert {instruction.kind for instruction in program.instructions} >= {
        "refresh",
        "compute",
        "pack",
        "reduce",
        "update",
    }


def test_show_program_of_7b_on_1024_ranks_takes_less_than_a_minute():
    command = [sys.executable, "-m", "internevo_engine", "show", "program", "configs/7B.yaml", "--gpus", "1024"]
    started = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert time.perf_counter() - started < 60
    program = parse_program(result.stdout)
    assert [(level.name, level.size, level.link) for level in program.levels] == [
        ("OS0", 8, "near"),
        ("R1", 128, "far"),
    ]
    assert program.micro_batches == 4


def test_show_step_sums_up_what_a_step_costs(capsys):
    assert main(["show", "step", str(ROOT / "configs/7B.yaml"), "--gpus", "64", "model.layers=4"]) == 0
    output = capsys.readouterr().out
    assert "OS0" in output
    assert "refresh" in output


def test_show_diff_names_the_first_step_and_bucket(tiny: Tiny, capsys):
    assert run([tiny.config, "comm.bucket_mb=0.02"]) == 0
    other = tiny.run.with_name("other")
    shutil.copytree(tiny.run, other)
    capsys.readouterr()
    assert main(["show", "diff", str(tiny.run), str(other)]) == 0
    assert capsys.readouterr().out == "6 steps are equal, bit for bit\n"
    lines = (other / "fingerprint.jsonl").read_text().splitlines()
    record = json.loads(lines[3])
    record["weights"][2] = "00000000"
    (other / "fingerprint.jsonl").write_text("\n".join([*lines[:3], json.dumps(record), *lines[4:]]) + "\n")
    assert main(["show", "diff", str(tiny.run), str(other)]) == 0
    assert capsys.readouterr().out.startswith("the runs part at step 4: weights of bucket 2 (")


def test_two_plans_of_one_run_have_one_fingerprint(tiny: Tiny, capsys):
    keys = ["launch.nproc=2", "comm.reduction=ordered", "comm.bucket_mb=0.02"]
    for name, sizes in (("a", ["zero.optim=2"]), ("b", ["zero.param=2", "zero.grad=2", "zero.optim=2"])):
        command = [
            sys.executable,
            "-m",
            "internevo_engine.run",
            tiny.config,
            *keys,
            *sizes,
            f"run.dir={tiny.folder}/{name}",
        ]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    assert main(["show", "diff", f"{tiny.folder}/a", f"{tiny.folder}/b"]) == 0
    assert "6 steps are equal, bit for bit" in capsys.readouterr().out


def test_two_worlds_of_one_run_have_one_fingerprint(tiny: Tiny, capsys):
    keys = [tiny.config, "run.world_invariant=true", "comm.bucket_mb=0.02", "zero.param=world", "zero.grad=world"]
    for world in (1, 2):
        shape = [f"launch.nproc={world}", f"data.grad_accum={4 // world}", f"run.dir={tiny.folder}/{world}"]
        command = [sys.executable, "-m", "internevo_engine.run", *keys, "zero.optim=world", *shape]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    assert main(["show", "diff", f"{tiny.folder}/1", f"{tiny.folder}/2"]) == 0
    assert "6 steps are equal, bit for bit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["show", "diff", "nowhere", "nowhere"], 3, "error: nowhere/fingerprint.jsonl is missing or empty"),
        (["show", "program", "nowhere.yaml"], 2, "error: nowhere.yaml: no such file"),
        (["show"], 2, "usage: python -m internevo_engine show program|step"),
        (["sing"], 2, "usage: python -m internevo_engine VERB"),
    ],
)
def test_mistakes_get_one_line(capsys, arguments, code, text):
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert text in captured.out + captured.err
