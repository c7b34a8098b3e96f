"""The command line as a user types it: what it prints, what it leaves, how it ends."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from internevo_engine.config.load import load_config
from internevo_engine.loop.run_folder import read_jsonl
from internevo_engine.run import main
from tests.conftest import Tiny

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "internevo_engine.run"]


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_jsonl(run / "metrics.jsonl")]


def test_a_run_leaves_everything_behind(tiny: Tiny, capsys):
    assert main([tiny.config, "run.valid_every=3"]) == 0
    files = {str(path.relative_to(tiny.run)) for path in tiny.run.rglob("*") if path.is_file()}
    assert files == {
        "run.json", "config.yaml", "command.txt", "environment.json", "plan.txt", "program.txt", "report.txt",
        "metrics.jsonl", "fingerprint.jsonl",
        "valid.jsonl", "loss.png", "log/rank0.log", "final/model.safetensors", "final/tokenizer.model",
        "final/config.yaml", "checkpoints/step-6/manifest.json", "checkpoints/step-6/rank-00000.safetensors",
    }  # fmt: skip
    metrics = read_jsonl(tiny.run / "metrics.jsonl")
    assert list(metrics[0]) == [
        "step", "loss", "grad_norm", "lr", "tokens", "tgs", "tflops", "tflops_internevo", "mfu", "step_ms",
        "skipped",
    ]  # fmt: skip
    assert [record["step"] for record in metrics] == [1, 2, 3, 4, 5, 6]
    assert metrics[-1]["tokens"] == 6 * 64
    assert metrics[-1]["mfu"] is None
    assert [record["step"] for record in read_jsonl(tiny.run / "valid.jsonl")] == [3, 6]
    assert losses(tiny.run)[-1] < losses(tiny.run)[0]
    assert json.loads((tiny.run / "run.json").read_text())["state"] == "finished"
    output = capsys.readouterr().out
    assert output.rstrip() == (tiny.run / "log/rank0.log").read_text().rstrip()
    assert "gzip -9" in output
    assert "next: " in output
    assert "\x1b" not in output


def test_the_final_weights_are_the_model(tiny: Tiny):
    main([tiny.config])
    weights = load_file(tiny.run / "final/model.safetensors")
    assert weights["embedding.weight"].shape == (300, 32)
    assert load_config(tiny.run / "final/config.yaml") == load_config(tiny.config)


def test_a_finished_run_says_so_and_fresh_moves_it_aside(tiny: Tiny, capsys):
    main([tiny.config])
    capsys.readouterr()
    assert main([tiny.config, "launch.nproc=1"]) == 0
    assert f"{tiny.run} is finished" in capsys.readouterr().out
    first = losses(tiny.run)
    assert main([tiny.config, "--fresh"]) == 0
    assert losses(tiny.run) == pytest.approx(first, rel=1e-6)
    assert losses(tiny.run.with_name("tiny.1")) == first


def test_a_finished_run_with_other_numbers_is_not_overwritten(tiny: Tiny, capsys):
    main([tiny.config])
    assert main([tiny.config, "optim.lr=2e-2"]) == 2
    assert "finished run with other settings (optim.lr: 0.01 -> 0.02)" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_is_moved_aside_and_a_live_one_is_left_alone(tiny: Tiny, capsys):
    main([tiny.config])
    state = json.loads((tiny.run / "run.json").read_text())
    (tiny.run / "run.json").write_text(json.dumps(state | {"state": "interrupted"}))
    shutil.rmtree(tiny.run / "checkpoints")
    assert main([tiny.config]) == 0
    assert "an unfinished or earlier run was here; it is now" in capsys.readouterr().out
    (tiny.run / "run.json").write_text(json.dumps(state | {"state": "running", "pid": os.getppid()}))
    assert main([tiny.config]) == 2
    assert "is in use: process" in capsys.readouterr().err


def test_random_tokens_are_announced_first(tiny: Tiny, capsys):
    overrides = ["data.train=random", "data.valid=null", "data.tokenizer=null"]
    assert main([tiny.config, *overrides]) == 0
    assert capsys.readouterr().out.startswith("training on random tokens")


def test_print_config_and_schema_and_both_spellings_of_an_override(tiny: Tiny, capsys):
    assert main([tiny.config, "--optim.lr", "0.5", "--run.seed=7", "data.micro_batch=3", "--print-config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["optim"]["lr"], printed["run"]["seed"], printed["data"]["micro_batch"]) == (0.5, 7, 3)
    assert main(["--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert "Peak learning rate." in json.dumps(schema)


def test_dry_run_plans_for_machines_that_are_not_there_and_trains_nothing(tiny: Tiny, capsys):
    assert main([tiny.config, "--dry-run"]) == 0
    assert main([str(ROOT / "configs/7B.yaml"), "--dry-run", "--gpus", "1024"]) == 0
    output = capsys.readouterr().out
    assert "1024 ranks = 128 hosts x 8 cuda" in output
    assert "P 1 | G 1 | OS 8" in output
    assert "7.32 G parameters, bf16" in output
    assert not tiny.run.exists()


def test_7b_on_a_small_machine_fails_at_once_with_numbers_and_a_remedy():
    started = time.perf_counter()
    command = [*COMMAND, str(ROOT / "configs/7B.yaml"), "launch.device=cpu"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 12
    assert time.perf_counter() - started < 10.0  # a fraction of a second, and before torch is imported
    assert "a rank needs " in result.stderr
    assert "are there per rank" in result.stderr
    assert "smaller model" in result.stderr
    assert "Traceback" not in result.stderr


# Bad input: (what, overrides, exit code, what the one line must say). {t} is the folder of the tiny run.
BAD = [
    ("unknown key", ["optim.lrr=1"], 2, "override optim.lrr=1: optim.lrr: unknown key; did you mean optim.lr?"),
    ("unknown section", ["optm.lr=1"], 2, "did you mean optim"),
    ("wrong type", ["run.steps=many"], 2, "run.steps: should be a valid integer, found 'many'"),
    ("wrong type", ["comm.overlap=1.5"], 2, "comm.overlap: should be a valid boolean, found 1.5"),
    ("heads", ["model.heads=5"], 2, "hidden=32 is not divisible by heads=5; use hidden="),
    ("heads", ["model.kv_heads=3"], 2, "kv_heads=3 does not divide heads=4; use 1, 2 or 4"),
    ("world", ["zero.optim=3", "launch.nproc=4"], 2, "zero.optim=3 does not divide world=4; use 1, 2 or 4"),
    ("world", ["zero.optim=2"], 2, "zero.optim=2 does not divide world=1; use 1"),
    ("missing file", ["data.train={t}/nowhere"], 3, "{t}/nowhere"),
    ("missing file", ["data.tokenizer={t}/no.model"], 3, "data.tokenizer={t}/no.model: No such file"),
    ("empty corpus", ["data.train={t}/empty"], 3, "{t}/empty"),
    ("empty corpus", ["data.valid={t}/empty.txt"], 3, "{t}/empty.txt"),
    ("read-only run folder", ["run.dir={t}/tiny.yaml/run"], 5, "choose another folder with run.dir"),
    ("read-only run folder", ["run.dir=/proc/run", "data.cache={t}/cache"], 5, "/proc/run"),
    ("tokenizer does not fit", ["data.tokenizer={t}/big.model"], 3, "has 400 pieces, model.vocab=300"),
    ("tokenizer does not fit", ["data.tokenizer={t}/tiny.yaml"], 3, "is not a sentencepiece model"),
    ("token id", ["data.train={t}/wide", "data.valid=null", "data.tokenizer=null"], 3, "{t}/wide"),
    ("token id", ["data.train={t}/wide", "data.valid={t}/wide", "data.tokenizer=null"], 3, "model.vocab"),
    ("truncated", ["data.train={t}/short", "data.valid=null", "data.tokenizer=null"], 3, "{t}/short"),
    ("truncated index", ["data.train={t}/noindex", "data.valid=null", "data.tokenizer=null"], 3, "{t}/noindex"),
    ("no text", ["data.tokenizer=null"], 3, "data.tokenizer is null"),
    ("no cuda", ["launch.device=cuda"], 2, "launch.device=cuda, but torch sees no CUDA device"),
    ("two spellings", ["nonsense"], 2, "nonsense"),
]


@pytest.fixture
def bad_files(tiny: Tiny) -> Tiny:
    from internevo_engine.data.corpora import Document
    from internevo_engine.data.formats import write_tokens
    from internevo_engine.data.tokenizers import train_tokenizer

    (tiny.folder / "empty").mkdir()
    (tiny.folder / "empty.txt").write_text("")
    text = "".join(f"{a}{b} " for a in "abcdefghijklmnop" for b in "qrstuvwxyz0123456789")
    train_tokenizer([Document("d", text)], 400, tiny.folder / "big.model")
    for name, vocab in (("wide", 5000), ("short", 300), ("noindex", 300)):
        with write_tokens(tiny.folder / name, vocab, source="test", tokenizer_sha256="") as writer:
            writer.add(np.arange(vocab - 200, vocab), 100)
    tokens = tiny.folder / "short" / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-30])
    (tiny.folder / "noindex" / "index.npy").unlink()
    return tiny


@pytest.mark.parametrize(("what", "overrides", "code", "text"), BAD, ids=[f"{b[0]}: {b[1][0]}" for b in BAD])
def test_bad_input_gives_one_line_with_place_value_and_remedy(bad_files: Tiny, capsys, what, overrides, code, text):
    folder = str(bad_files.folder)
    if sys.modules.get("torch") is not None and "no cuda" in what:
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a CUDA device")
    try:
        found = main([bad_files.config, *(override.replace("{t}", folder) for override in overrides)])
    except SystemExit as stop:  # argparse
        found = stop.code
    errors = capsys.readouterr().err
    assert found == code, errors
    assert "Traceback" not in errors
    assert text.replace("{t}", folder) in errors
    assert len([line for line in errors.splitlines() if line.startswith("error: ")]) <= 1


def environment(**variables: str) -> dict[str, str]:
    return os.environ | variables | {"PYTHONPATH": str(ROOT)}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_slurm(tiny: Tiny) -> list[subprocess.Popen]:
    job = {"SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_ID": str(free_port())}
    return [
        subprocess.Popen(
            [*COMMAND, tiny.config, "run.dir=" + str(tiny.folder / "two")],
            env=environment(**job, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), MASTER_PORT=job["SLURM_JOB_ID"]),
        )
        for rank in range(2)
    ]


def start_two_torchruns(tiny: Tiny) -> list[subprocess.Popen]:
    port = str(free_port())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    torchrun += ["--master-addr", "127.0.0.1", "--master-port", port]
    program = ["-m", "internevo_engine.run", tiny.config, "run.dir=" + str(tiny.folder / "two")]
    return [subprocess.Popen([*torchrun, "--node-rank", str(n), *program], env=environment()) for n in range(2)]


THIRD = ["zero.param=2", "zero.grad=2", "zero.optim=2"]
"""ZeRO-3"""


def start_by_itself(tiny: Tiny) -> list[subprocess.Popen]:
    program = [*COMMAND, tiny.config, "launch.nproc=2", "run.dir=" + str(tiny.folder / "two"), *THIRD]
    return [subprocess.Popen(program, env=environment())]


@pytest.mark.parametrize("start", [start_by_itself, start_two_torchruns, start_slurm])
def test_two_ranks_by_any_launcher_train_what_one_rank_trains(tiny: Tiny, start):
    main([tiny.config, "data.grad_accum=2"])
    processes = start(tiny)
    assert [process.wait(timeout=120) for process in processes] == [0] * len(processes)
    assert losses(tiny.folder / "two") == pytest.approx(losses(tiny.run), rel=1e-5)
    one, two = (read_jsonl(run / "valid.jsonl")[-1] for run in (tiny.run, tiny.folder / "two"))
    assert two["bits_per_byte"] == pytest.approx(one["bits_per_byte"], rel=1e-4)
    assert two["tokens"] == one["tokens"]


def test_ctrl_c_ends_after_the_step_with_everything_written(tiny: Tiny):
    process = subprocess.Popen(
        [*COMMAND, tiny.config, "launch.nproc=2", "run.steps=1000000"],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith("step") and "tgs" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 75
    assert "stopped on request after step" in rest
    assert (tiny.run / "final/model.safetensors").exists()
    assert (tiny.run / "loss.png").exists()
    state = json.loads((tiny.run / "run.json").read_text())
    assert state["state"] == "interrupted"
    assert state["step"] == len(losses(tiny.run))
