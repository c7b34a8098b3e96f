"""Every folder that holds a model speaks, with the same words; what is none says so."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from internevo_engine.__main__ import main
from internevo_engine.errors import CheckpointError, DataError
from internevo_engine.run import main as run
from internevo_engine.serve.generate import Request, complete
from internevo_engine.serve.load import LanguageModel, load_model
from tests.conftest import Tiny
from tests.serve.models import write_hf, write_speaker


def said(model: LanguageModel) -> tuple[int, ...]:
    return complete(model, [Request(model.vocabulary.begin("eat 3 apples and"), max_tokens=12)])[0].tokens


def test_a_run_speaks_as_its_export_does(tiny: Tiny) -> None:
    assert run([tiny.config]) == 0
    final = load_model(tiny.run, "cpu")
    assert final.origin == str(tiny.run / "final")
    assert main(["convert", "hf", str(tiny.run), str(tiny.folder / "hf")]) == 0
    exported = load_model(tiny.folder / "hf", "cpu")
    assert said(final) == said(load_model(tiny.run / "final", "cpu")) == said(exported)
    assert (final.name, exported.name, final.max_len, exported.max_len) == ("tiny", "hf", 32, 32)


def test_a_run_under_way_speaks_from_its_newest_checkpoint_that_verifies(tiny: Tiny) -> None:
    assert run([tiny.config, "checkpoint.every=3", "launch.nproc=2", "zero.optim=2"]) == 0
    final = load_model(tiny.run, "cpu")
    state = json.loads((tiny.run / "run.json").read_text())
    (tiny.run / "run.json").write_text(json.dumps({**state, "state": "running"}))
    model = load_model(tiny.run, "cpu")
    assert Path(model.origin).name == "step-6"
    for name, weight in final.decoder.named_parameters():
        assert torch.equal(weight, model.decoder.get_parameter(name))
    damaged = next((tiny.run / "checkpoints/step-6").glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    assert Path(load_model(tiny.run, "cpu").origin).name == "step-3"
    shutil.rmtree(tiny.run / "checkpoints/step-3")
    with pytest.raises(CheckpointError, match=r"step-6.*the file was changed"):
        load_model(tiny.run, "cpu")


def test_a_run_that_trains_adapters_speaks_when_they_are_merged(tiny: Tiny) -> None:
    assert run([tiny.config]) == 0
    adapted = tiny.folder / "adapted"
    assert run([tiny.config, f"run.dir={adapted}", f"run.init={tiny.run}", "lora.rank=2", "run.steps=2"]) == 0
    assert said(load_model(adapted, "cpu"))
    state = json.loads((adapted / "run.json").read_text())
    (adapted / "run.json").write_text(json.dumps({**state, "state": "running"}))
    with pytest.raises(DataError, match="trains adapters, which only RUN/final has merged; wait for its end"):
        load_model(adapted, "cpu")


def test_a_run_whose_tokenizer_is_gone_says_so(tiny: Tiny) -> None:
    assert run([tiny.config]) == 0
    state = json.loads((tiny.run / "run.json").read_text())
    (tiny.run / "run.json").write_text(json.dumps({**state, "state": "failed"}))
    shutil.rmtree(tiny.run.parent / "tokens")
    with pytest.raises(DataError, match=r"tokens has no tokenizer for data.train as it is now"):
        load_model(tiny.run, "cpu")
    assert not (tiny.run.parent / "tokens").exists()


def test_weights_keep_their_dtype(tmp_path: Path) -> None:
    assert load_model(write_hf(tmp_path), "cpu").decoder.norm.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("break_", "text"),
    [
        (shutil.rmtree, "is no run, engine folder or Hugging Face folder"),
        (lambda folder: (folder / "tokenizer.model").unlink(), "has no tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "can't be read as a tokenizer"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "is not a whole safetensors file"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], break_, text: str) -> None:
    break_(write_speaker(tmp_path / "model"))
    assert main(["chat", str(tmp_path / "model"), "--device", "cpu"]) == 3
    assert text in capsys.readouterr().err


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = write_hf(tmp_path)
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["vocab"]["zzz"] = 640
    (folder / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="token id 640, the model's embedding 640 rows"):
        load_model(folder, "cpu")
