"""Small models that can be talked to: random weights, and a tokenizer with the marks of a chat model."""

from pathlib import Path

from internevo_engine.interop.engine_folder import write_config
from internevo_engine.interop.export_hf import export
from internevo_engine.interop.folder import write_weights
from internevo_engine.serve.load import LanguageModel, load_model
from tests.interop.folders import decoder_of, tiny, train, weights_of

MAX_LEN = 160
MARKS = {"internlm": "<eoh>,<eoa>"}


def write_speaker(folder: Path, family: str = "internlm2", *, marks: bool = True, **keys: object) -> Path:
    """An engine folder; without marks its tokenizer is a base model's."""
    model = tiny(family, **keys)
    folder.mkdir(parents=True)
    write_weights(folder, weights_of(decoder_of(model)).items())
    write_config(folder, model, MAX_LEN)
    symbols = {"control_symbols": MARKS.get(family, "<|im_start|>,<|im_end|>")} if marks else {}
    (folder / "tokenizer.model").write_bytes(train(**symbols))
    return folder


def speaker(folder: Path, family: str = "internlm2", **keys: object) -> LanguageModel:
    return load_model(write_speaker(folder / "engine", family, **keys), "cpu")


def write_hf(folder: Path, family: str = "internlm2", **keys: object) -> Path:
    """The same as a Hugging Face folder, in which only tokenizer.json says what tokens mean."""
    export(write_speaker(folder / "engine", family, **keys), folder / "hf")
    (folder / "hf/tokenizer.model").unlink()
    return folder / "hf"
