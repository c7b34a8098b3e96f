"""interop: python -m internevo_engine.interop.unpickle TARGET FILE...: each FILE.pt becomes TARGET/FILE.safetensors.

A process of its own, started by from_internevo.py: torch.load(weights_only=True) admits tensors and plain containers
only, and whatever a hostile file does to this process, the converter reads safetensors files or an exit code.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file


def unpickle(path: Path, target: Path) -> str | None:
    """Returns what is wrong with `path`, or None."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever the file provokes is the file's fault
        return str(error).splitlines()[0]
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        return "it holds something else than tensors by name"
    weights = {str(name): tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    save_file(weights, target)
    return None


if __name__ == "__main__":
    folder, *files = (Path(argument) for argument in sys.argv[1:])
    for file in files:
        if problem := unpickle(file, folder / f"{file.stem}.safetensors"):
            sys.exit(f"{file} can't be read as tensors: {problem}")
