"""loop: RUN/final, the trained model as anyone can read it: safetensors, the tokenizer, the config. No pickle.

Of a LoRA run the adapters, in peft's format, and where their base is (interop/adapters.py).
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from internevo_engine.config.load import load_config
from internevo_engine.data.tokenizers import Tokenizer
from internevo_engine.interop.adapters import Base, write_adapters
from internevo_engine.interop.hf_files import SENTENCEPIECE, carry


def write_final(folder: Path, model: torch.nn.Module, tokenizer: Tokenizer | None, base: Base | None) -> Path:
    """Write folder/final whole or not at all. Weights in the training dtype, names as in the module."""
    partial, final = folder / "final.partial", folder / "final"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    weights = {name: parameter.detach().cpu().contiguous() for name, parameter in _kept(model, base)}
    if base is None:
        save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    else:
        config = load_config(folder / "config.yaml")
        write_adapters(partial, weights, config.model, config.lora, base)
    if tokenizer is not None:
        _copy_tokenizer(tokenizer, partial)
    shutil.copyfile(folder / "config.yaml", partial / "config.yaml")
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    return final


def _kept(model: torch.nn.Module, base: Base | None) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """What was trained: beside a base that stays, the adapters."""
    return ((name, p) for name, p in model.named_parameters() if base is None or p.requires_grad)


def _copy_tokenizer(tokenizer: Tokenizer, target: Path) -> None:
    """With the files that belong to it, where it came from Hugging Face."""
    if tokenizer.path.suffix == ".json":
        carry(tokenizer.path.parent, target, tokenizer.num_pieces)
    else:
        shutil.copyfile(tokenizer.path, target / SENTENCEPIECE)
