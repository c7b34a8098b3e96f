"""interop: an engine folder becomes a Hugging Face folder that needs no code of ours.

Read one parameter at a time, written in shards; internlm, internlm2 and llama as LlamaForCausalLM, internlm3 as itself.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from internevo_engine.errors import DataError
from internevo_engine.interop.engine_folder import EngineFolder, open_engine, with_adapters
from internevo_engine.interop.folder import SHARD_BYTES, published, write_json, write_weights
from internevo_engine.interop.hf_config import config_json
from internevo_engine.interop.hf_files import SENTENCEPIECE, build, carry, write_card
from internevo_engine.interop.names import HF_LLAMA, moves
from internevo_engine.interop.tensors import read_json
from internevo_engine.models.families import architecture, parameters


def export(
    source: Path,
    target: Path,
    *,
    tokenizer: Path | None = None,
    adapters: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Write `target` whole or not at all; returns the number of parameters.

    Args:
        source: a run or an engine folder.
        tokenizer: a sentencepiece model that replaces the folder's.
        adapters: a folder of peft's, to be merged in; those of a LoRA run are in any case.

    Raises:
        DataError: the source can't be used, or no tokenizer goes with it.
        StorageError: `target` is there already or can't be written.
    """
    engine = open_engine(source)
    if adapters is not None:
        engine = with_adapters(engine, adapters)
    model, arch = engine.config.model, architecture(engine.config.model)
    seq_len = engine.config.data.seq_len
    with engine.tensors, published(target) as partial:
        bos, eos = _write_tokenizer(engine, partial, tokenizer)
        write_weights(partial, _tensors(engine), shard_bytes)
        dtype = str(engine.tensors.read("norm.weight").dtype).removeprefix("torch.")
        write_json(
            partial / "config.json", config_json(model.family, arch, seq_len=seq_len, dtype=dtype, bos=bos, eos=eos)
        )
        num_params = sum(param.numel for param in parameters(model))
        write_card(partial, target.name, model.family, arch, num_params, seq_len)
    return num_params


def _write_tokenizer(engine: EngineFolder, target: Path, given: Path | None) -> tuple[object, object]:
    """The tokenizer's files and generation_config.json; ids of bos and eos."""
    model = engine.config.model
    if given is None and (engine.path / "tokenizer.json").is_file():
        carry(engine.path, target, model.vocab)
        ids = read_json(target / "generation_config.json")
        return ids.get("bos_token_id"), ids.get("eos_token_id")
    found = given or engine.path / SENTENCEPIECE
    if not found.is_file():
        raise DataError(f"{found}: no such file; name the sentencepiece model of the training data with --tokenizer")
    return build(found, target, model.family, architecture(model), engine.config.data.seq_len)


def _tensors(engine: EngineFolder) -> Iterator[tuple[str, Tensor]]:
    """By their names. A head whose rows training normalizes is written normalized, apart from the embedding."""
    arch, read = architecture(engine.config.model), engine.tensors.read
    for move in moves(HF_LLAMA, engine.config.model):
        if arch.norm_head and move.param.name == "head.weight":
            continue
        for name, part in zip(move.names, move.layout.split(read(move.param.name), arch), strict=True):
            yield name, part.clone(memory_format=torch.contiguous_format)
    if arch.norm_head:
        head = "embedding.weight" if arch.tie_embeddings else "head.weight"
        yield "lm_head.weight", F.normalize(read(head), dim=-1)
