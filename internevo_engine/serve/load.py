"""serve: a run, an engine folder or a Hugging Face folder becomes a model that can speak. Hands on a LanguageModel.

Weights go one tensor at a time into the decoder, in the dtype that they are kept in. Nothing in a folder is executed.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from internevo_engine.checkpoint.load import read_manifest, read_masters
from internevo_engine.checkpoint.remote import storage_of
from internevo_engine.checkpoint.storage import Storage
from internevo_engine.config.load import load_config
from internevo_engine.config.schema import ModelConfig
from internevo_engine.data.prepare import cache_of, tokenizer_of
from internevo_engine.errors import CheckpointError, DataError
from internevo_engine.interop.engine_folder import open_model
from internevo_engine.interop.sources import Hints
from internevo_engine.interop.tensors import read_json
from internevo_engine.loop.run_folder import read_state
from internevo_engine.models.decoder import Decoder
from internevo_engine.models.families import parameters
from internevo_engine.models.initialize import TORCH_DTYPES, allocate
from internevo_engine.runtime.machine import choose_device, probe_machine
from internevo_engine.serve.dialogue import TEMPLATE_OF, Prompt, jinja_prompt, table_prompt
from internevo_engine.serve.vocabulary import HfVocabulary, SentencePieceVocabulary, Vocabulary, open_vocabulary


@dataclass(frozen=True)
class LanguageModel:
    """A model, its tokenizer, and how it is talked to."""

    name: str
    """For people, and for the server's clients."""
    decoder: Decoder
    vocabulary: Vocabulary
    prompt: Prompt | None
    """Makes a prompt of a dialogue; None: the model only continues text."""
    stop_ids: frozenset[int]
    """Tokens that end an answer."""
    max_len: int
    """Tokens of prompt and answer together."""
    origin: str
    """Where the weights are from, for people."""


@dataclass(frozen=True)
class Found:
    """A model on disk, opened but not read."""

    folder: Path
    """Where its small files are."""
    model: ModelConfig
    max_len: int
    dtype: torch.dtype
    tensors: Iterable[tuple[str, Tensor]]
    """Our parameters, by name, one in memory at a time."""
    vocabulary: SentencePieceVocabulary | HfVocabulary
    template: str | None = None
    """The row of data/chat.py's TEMPLATES that it was trained with, where that is known."""


def load_model(path: Path, device: str = "auto") -> LanguageModel:
    """Load a run (its final weights; while it is under way, its newest checkpoint), an engine or a Hugging Face folder.

    Args:
        device: auto, cpu or cuda.

    Raises:
        EngineError: it is none of them, or damaged, or has no tokenizer.
    """
    open_ = next((open_ for file, open_ in _KINDS if (path / file).is_file()), None)
    if open_ is None:
        kinds = ", ".join(file for file, _ in _KINDS)
        raise DataError(f"{path} is no run, engine folder or Hugging Face folder: it has none of {kinds}")
    torch_device = torch.device(choose_device(device, probe_machine()).name)
    with ExitStack() as stack:
        found = open_(path, stack)
        decoder = allocate(found.model, found.max_len, found.dtype, torch_device)
        with torch.no_grad():
            for name, tensor in found.tensors:
                decoder.get_parameter(name).copy_(tensor)
    prompt, ends = _dialogue(found)
    name = path.resolve().name
    return LanguageModel(name, decoder.eval(), found.vocabulary, prompt, ends, found.max_len, str(found.folder))


def _open_run(path: Path, stack: ExitStack) -> Found:
    """While a run is under way, RUN/final is of an earlier start or not there."""
    if (path / "final").is_dir() and read_state(path).get("state") in ("finished", "interrupted"):
        return _open_folder(path / "final", stack)
    config = load_config(path / "config.yaml")
    if config.lora.rank:
        raise DataError(f"{path} trains adapters, which only RUN/final has merged; wait for its end, or stop it")
    tokenizer = tokenizer_of(config, cache_of(config, path))
    if tokenizer is None:
        raise DataError(f"{path} was trained on tokens, and data.tokenizer=null: what they mean isn't known")
    folder, dtype, masters = _newest(storage_of(config, path), config.model)
    vocabulary = SentencePieceVocabulary(tokenizer)
    return Found(folder, config.model, config.data.seq_len, dtype, masters.items(), vocabulary, config.data.chat)


def _newest(storage: Storage, model: ModelConfig) -> tuple[Path, torch.dtype, dict[str, Tensor]]:
    """The fp32 weights of the newest checkpoint that verifies, where it lies, and the dtype trained in."""
    problem = f"{storage.url} holds no checkpoint; wait for the run's first one"
    for step in reversed(storage.steps()):
        folder = storage.published(step)
        masters = {param.name: torch.empty(param.shape) for param in parameters(model)}
        try:
            manifest = read_manifest(folder, step)
            read_masters(folder, manifest, masters)
        except CheckpointError as error:  # damaged, or removed meanwhile by the run that goes on
            problem = str(error)
        else:
            return Path(folder.name), TORCH_DTYPES[manifest.plan.dtype], masters
    raise CheckpointError(problem)


def _open_folder(path: Path, stack: ExitStack) -> Found:
    """An engine folder or a Hugging Face folder, its tensors under our names."""
    folder = open_model(path, Hints())
    tensors, config = stack.enter_context(folder.tensors), folder.config
    return Found(
        folder.path,
        config.model,
        config.data.seq_len,
        tensors.read("norm.weight").dtype,
        ((param.name, tensors.read(param.name)) for param in parameters(config.model)),
        open_vocabulary(folder.path, config.model.vocab),
        config.data.chat,
    )


_KINDS: tuple[tuple[str, Callable[[Path, ExitStack], Found]], ...] = (
    ("run.json", _open_run),
    ("config.yaml", _open_folder),
    ("config.json", _open_folder),
)
"""The file that tells a kind, and how it is opened."""


def _dialogue(found: Found) -> tuple[Prompt | None, frozenset[int]]:
    """How the model is talked to, and the tokens that end an answer."""
    ends = _declared_ends(found.folder)
    if isinstance(found.vocabulary, HfVocabulary):
        return jinja_prompt(found.folder, found.vocabulary), ends
    tokenizer = found.vocabulary.tokenizer
    prompt, marks = table_prompt(found.template or TEMPLATE_OF[found.model.family], tokenizer)
    return prompt, ends | marks | {tokenizer.eos_id}


def _declared_ends(folder: Path) -> frozenset[int]:
    """eos_token_id of generation_config.json, else of config.json: an id or a list of them."""
    for file in (folder / "generation_config.json", folder / "config.json"):
        eos = read_json(file).get("eos_token_id") if file.is_file() else None
        if eos is not None:
            return frozenset(token for token in (eos if isinstance(eos, list) else [eos]) if isinstance(token, int))
    return frozenset()
