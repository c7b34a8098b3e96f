"""`data prepare` makes the same tokens with any workers and shards, and goes on where it was stopped."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from internevo_engine.__main__ import main
from internevo_engine.data.corpora import TextCorpus
from internevo_engine.data.formats import TokenFile
from internevo_engine.data.internevo import write_internevo
from internevo_engine.data.tokenizers import load_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of 300 lines, 40 small files, and a tokenizer for them."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "text").mkdir()
    for n in range(40):
        (root / "text" / f"{n:02}.txt").write_text(f"file {n} says {n * n}\n" * 5)
    lines = (json.dumps({"text": f"line {n} says é{n * n}\n" * (n % 7 + 1)}) for n in range(300))
    (root / "text" / "z.jsonl").write_text("\n".join(lines))
    train_tokenizer(TextCorpus.open(str(root / "text")).documents(), 350, root / "t.model")
    return root


def prepare(corpus: Path, out: Path, *more: str) -> int:
    return main(["data", "prepare", str(out), str(corpus / "text"), "--tokenizer", str(corpus / "t.model"), *more])


def tokens_of(folder: Path) -> list[list[int]]:
    file = TokenFile.open(folder, 1 << 30)
    file.verify()
    return [document.tolist() for document in file.documents()]


def test_workers_and_shards_do_not_change_the_tokens(corpus: Path, tmp_path: Path) -> None:
    assert prepare(corpus, tmp_path / "one", "--workers", "1", "--shard-mb", "100") == 0
    assert prepare(corpus, tmp_path / "two", "--workers", "2", "--shard-mb", "0.003") == 0
    tokenizer = load_tokenizer(corpus / "t.model", 350)
    expected = [
        [1, *tokenizer.encode(document.text), 2] for document in TextCorpus.open(str(corpus / "text")).documents()
    ]
    assert tokens_of(tmp_path / "one") == tokens_of(tmp_path / "two") == expected
    assert TokenFile.open(tmp_path / "one", 350).manifest == TokenFile.open(tmp_path / "two", 350).manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_finished_shards_are_kept_and_the_rest_is_made(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file in the way of shard 3 stops the first call, as a full disk or a kill would."""
    options, shards = ("--workers", "1", "--shard-mb", "0.003"), tmp_path / "out.unfinished" / "shards"
    shards.mkdir(parents=True)
    (shards / "text-000003").write_text("in the way")
    assert prepare(corpus, tmp_path / "out", *options) == 5
    assert not (tmp_path / "out").exists()
    (shards / "text-000003").unlink()
    (shards / "text-000003.tmp-dead").mkdir()
    assert {"text-000000", "text-000001", "text-000002"} <= {path.name for path in shards.iterdir()}
    assert prepare(corpus, tmp_path / "out", "--workers", "1") == 3
    assert "was begun from other sources, another tokenizer or other options" in capsys.readouterr().err
    marked = shards / "text-000001" / "tokens.bin"
    marked.write_bytes(marked.read_bytes()[:-2] + b"\3\0")  # made anew it would end with eos, 2
    assert prepare(corpus, tmp_path / "out", *options) == 0
    assert prepare(corpus, tmp_path / "fresh", *options) == 0
    kept_tokens, fresh_tokens = tokens_of(tmp_path / "out"), tokens_of(tmp_path / "fresh")
    differing = [n for n, (a, b) in enumerate(zip(kept_tokens, fresh_tokens, strict=True)) if a != b]
    assert [(kept_tokens[n][:-1], kept_tokens[n][-1]) for n in differing] == [(fresh_tokens[differing[0]][:-1], 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "out"]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command as a user types it."""
    command = [sys.executable, "-m", "internevo_engine", "data", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_line_prepares_inspects_and_mixes(corpus: Path, tmp_path: Path) -> None:
    out, text, model = tmp_path / "out", corpus / "text", corpus / "t.model"
    made = run("prepare", out, text, "--tokenizer", model, "--workers", "1")
    assert (made.returncode, made.stderr) == (0, "")
    assert f"made {out}" in made.stdout
    seen = run("inspect", out, "--tokenizer", model, "--vocab", "300", "--samples", "1")
    documents = tokens_of(out)
    num_tokens = sum(map(len, documents))
    assert f"documents    {len(documents)}\n" in seen.stdout
    assert f"tokens       {num_tokens:,}, of which {num_tokens - len(documents):,} are labels\n" in seen.stdout
    assert "ids >= 300   " in seen.stdout
    assert "  > 'file 0 says 0\\nfile 0 says 0" in seen.stdout
    config = tmp_path / "c.yaml"
    config.write_text(
        "model: {family: internlm, vocab: 350, layers: 1, hidden: 8, heads: 2, ffn: 16}\n"
        f"data: {{train: [{out}, {out}], weights: [1, 3], seq_len: 16, micro_batch: 4}}\nrun: {{steps: 2048}}\n"
    )
    mixed = run("mix", config, "--gpus", "2")
    assert "16,384 sequences of 16 tokens in 2,048 steps" in mixed.stdout
    assert [line.split()[0::2] for line in mixed.stdout.splitlines()[2:]] == [
        ["25.00%", "4,096", str(out)],
        ["75.00%", "12,288", str(out)],
    ]


def test_dialogues_become_a_folder_of_answers(corpus: Path, tmp_path: Path) -> None:
    chat = tmp_path / "chat.jsonl"
    chat.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}))
    refused = run("prepare", tmp_path / "out", chat, "--tokenizer", corpus / "t.model", "--chat", "internlm2")
    assert refused.returncode == 3
    assert "has no piece <|im_start|>, which data.chat needs" in refused.stderr
    refused = run("prepare", tmp_path / "out2", chat, "--tokenizer", corpus / "t.model")
    assert "no key 'text' among ['messages']; set data.text_key" in refused.stderr


def test_types_survive_a_way_through_internevos_format(corpus: Path, tmp_path: Path) -> None:
    for kind, ids in (("en", [1, ~5, 6]), ("cn", [1, 7, 2])):
        (tmp_path / "evo" / kind).mkdir(parents=True)
        write_internevo(tmp_path / "evo" / kind / "x.bin", [np.array(ids)] * 3)
    assert main(["data", "prepare", str(tmp_path / "out"), str(tmp_path / "evo"), "--workers", "1"]) == 0
    assert tokens_of(tmp_path / "out" / "cn") == [[1, 7, 2]] * 3
    assert tokens_of(tmp_path / "out" / "en") == [[1, ~5, 6]] * 3
    again = [str(tmp_path / "again"), str(tmp_path / "evo"), "--format", "internevo", "--workers", "1"]
    assert main(["data", "prepare", *again]) == 0
    for kind in ("en", "cn"):
        old, new = tmp_path / "evo" / kind / "x.bin", tmp_path / "again" / kind / "data.bin"
        assert old.read_bytes() == new.read_bytes()
        assert Path(f"{old}.meta").read_bytes() == Path(f"{new}.meta").read_bytes()


def test_inspect_gives_one_digest_for_all_formats(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(corpus, tmp_path / "engine", "--workers", "1") == 0
    assert prepare(corpus, tmp_path / "evo", "--format", "internevo", "--workers", "1") == 0
    capsys.readouterr()
    assert main(["data", "inspect", str(tmp_path / "engine"), str(tmp_path / "evo"), "--samples", "0"]) == 0
    digests = [line.split()[1] for line in capsys.readouterr().out.splitlines() if "sha256" in line]
    assert len(digests) == 2
    assert len(set(digests)) == 1
    (tmp_path / "engine" / "tokens.bin").write_bytes(b"\1\0" * (tmp_path / "engine" / "tokens.bin").stat().st_size)
    assert main(["data", "inspect", str(tmp_path / "engine")]) == 3


def test_what_makes_no_sense_is_refused(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = str(corpus / "text"), str(tmp_path / "out")
    assert prepare(corpus, tmp_path / "out", "--workers", "1") == 0
    shutil.copytree(corpus / "text", tmp_path / "text")
    refused = (
        (["prepare", str(tmp_path / "new"), text], "is text and needs a tokenizer; give --tokenizer FILE"),
        (["prepare", out, text, "--tokenizer", str(corpus / "t.model")], "is already there; delete it"),
        (["prepare", str(tmp_path / "new"), out], "is a token folder already"),
        (["inspect", text], "is text, not tokens; make tokens first"),
        (["inspect", str(tmp_path / "nowhere")], "does not exist"),
        (
            ["prepare", str(tmp_path / "new"), text, str(tmp_path / "text"), "--tokenizer", str(corpus / "t.model")],
            "several sources are of type text",
        ),
    )
    for arguments, message in refused:
        assert main(["data", *arguments]) == 3
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
