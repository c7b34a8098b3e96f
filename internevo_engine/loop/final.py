"""loop: RUN/final, the trained model as anyone can read it: safetensors, the tokenizer, the config. No pickle."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from internevo_engine.data.tokenizers import Tokenizer


def write_final(folder: Path, model: torch.nn.Module, tokenizer: Tokenizer | None) -> Path:
    """Write folder/final whole or not at all. Weights in the training dtype, names as in the module."""
    partial, final = folder / "final.partial", folder / "final"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    weights = {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    if tokenizer is not None:
        shutil.copyfile(tokenizer.path, partial / "tokenizer.model")
    shutil.copyfile(folder / "config.yaml", partial / "config.yaml")
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    return final
