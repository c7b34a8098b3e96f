"""Held-out numbers are those of training, of transformers, and of lm-eval's own model."""

import json
from math import log
from pathlib import Path

import pytest
import torch
import transformers

from internevo_engine.__main__ import main
from internevo_engine.data.formats import write_tokens
from internevo_engine.errors import DataError, UsageError
from internevo_engine.run import main as run
from internevo_engine.serve.evaluate import held_out
from internevo_engine.serve.load import load_model
from tests.conftest import Tiny
from tests.serve.models import speaker, write_hf

TEXT = "def f(x):\n    return x + 1  # 天地玄黄\n" * 6


def test_a_run_is_worth_what_its_last_validation_says(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([tiny.config, "data.micro_batch=1"]) == 0
    expected = json.loads((tiny.run / "valid.jsonl").read_text().splitlines()[-1])
    found = held_out(load_model(tiny.run, "cpu"), str(tiny.folder / "valid"))
    assert found.tokens == expected["tokens"]
    assert found.loss == pytest.approx(expected["loss"], rel=1e-5)
    assert found.bits_per_byte == pytest.approx(expected["bits_per_byte"], rel=1e-5)
    assert found.accuracy == pytest.approx(expected["accuracy"], abs=0.01)
    capsys.readouterr()
    assert main(["eval", str(tiny.run), str(tiny.folder / "valid"), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert f"bits per byte  {found.bits_per_byte:.4f}" in shown
    assert f"tokens         {found.tokens:,}" in shown


def test_a_hugging_face_folder_is_worth_what_transformers_says(tmp_path: Path) -> None:
    folder = write_hf(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    found = held_out(load_model(folder, "cpu"), str(tmp_path / "text.txt"), context=160)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")["input_ids"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        loss = float(theirs(tokens, labels=tokens).loss)
    assert found.tokens == tokens.shape[1] - 1
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(loss * found.tokens / log(2) / len(TEXT.encode()), rel=1e-5)


def test_tokens_that_are_not_counted_are_not(tmp_path: Path) -> None:
    model = speaker(tmp_path)
    for name, masked in (("all", False), ("half", True)):
        with write_tokens(tmp_path / name, 640, source="test", masked=masked) as writer:
            document = torch.arange(1, 41).numpy()
            document[20:] = ~document[20:] if masked else document[20:]
            writer.add(document, 40)
    found = {name: held_out(model, str(tmp_path / name)) for name in ("all", "half")}
    assert (found["all"].tokens, found["half"].tokens) == (39, 19)
    assert found["all"].loss != found["half"].loss


def test_what_cannot_be_evaluated_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = speaker(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        held_out(model, str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="--context 9999: the model was made for 1 to 160 positions"):
        held_out(model, str(tmp_path), context=9999)
    with write_tokens(tmp_path / "large", 9000, source="test") as writer:
        writer.add(torch.arange(8000, 8010).numpy(), 10)
    with pytest.raises(DataError, match="model.vocab=640"):
        held_out(model, str(tmp_path / "large"))
    with pytest.raises(SystemExit):
        main(["eval", str(tmp_path / "engine")])
    assert "a CORPUS or --tasks is needed" in capsys.readouterr().err


CHOICE = """\
task: offline_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""


def test_lm_eval_gets_the_log_likelihoods_that_transformers_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="the extra [eval] is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from lm_eval.tasks import TaskManager

    from internevo_engine.serve.harness import Adapter

    folder, tasks = write_hf(tmp_path), write_tasks(tmp_path)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    adapter = Adapter(load_model(folder, "cpu"))
    found = lm_eval.simple_evaluate(adapter, tasks=["offline_choice"], task_manager=manager, bootstrap_iters=0)
    samples = sorted(found["samples"]["offline_choice"], key=lambda sample: sample["doc_id"])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    encode = transformers.AutoTokenizer.from_pretrained(folder).encode
    for sample in samples:
        question, choices = sample["doc"]["question"], sample["doc"]["choices"]
        values = [float(response[0][0]) for response in sample["resps"]]
        expected = [log_likelihood(theirs, encode(question), encode(f"{question} {choice}")) for choice in choices]
        assert values == pytest.approx(expected, rel=1e-4)
    assert len(samples) == 8
    assert main(["eval", str(folder), "--tasks", "offline_choice", "--include-path", str(tasks), "--limit", "4"]) == 0
    assert "offline_choice" in capsys.readouterr().out
    assert main(["eval", str(folder), "--tasks", "nothing", "--include-path", str(tasks)]) == 3


@torch.no_grad()
def log_likelihood(model: transformers.PreTrainedModel, context: list[int], whole: list[int]) -> float:
    scores = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return float(sum(scores[place - 1, whole[place]] for place in range(len(context), len(whole))))


def write_tasks(folder: Path) -> Path:
    (folder / "tasks").mkdir()
    questions = [
        {"question": f"def f{n}(x):", "choices": ["return x", " pass  now", "天"], "answer": n % 3} for n in range(8)
    ]
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in questions))
    (folder / "tasks/choice.yaml").write_text(CHOICE.format(data=data))
    return folder / "tasks"


def test_without_lm_eval_the_extra_is_named(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    monkeypatch.delitem(__import__("sys").modules, "internevo_engine.serve.harness", raising=False)
    assert main(["eval", str(write_hf(tmp_path)), "--tasks", "x"]) == 2
    assert "pip install 'internevo-engine[eval]'" in capsys.readouterr().err
