"""interop: a GGUF file of the llama architecture as a Source, dequantized tensor by tensor.

The gguf package reads the file, transformers its tokenizer; both come with the extra [hf].
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from internevo_engine.config.schema import ModelConfig
from internevo_engine.errors import DataError
from internevo_engine.interop.folder import write_json
from internevo_engine.interop.names import GGUF_LLAMA
from internevo_engine.interop.sources import Hints, Source

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

T = TypeVar("T")


def open_gguf(path: Path, hints: Hints, scratch: Path, stack: ExitStack) -> Source:
    """Read the header; weights become fp32, whatever they are stored in.

    Raises:
        DataError: the package gguf is missing, the file is damaged, or of another architecture.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise DataError("GGUF files need the package gguf: pip install 'internevo-engine[hf]'") from None
    reader = _trusting_nothing(path, lambda: GGUFReader(path))
    model = _trusting_nothing(path, lambda: _model(reader))
    return Source(
        path,
        model,
        GGUF_LLAMA,
        GgufTensors(path, reader),
        int(_field(reader, "llama.context_length")),
        lambda target: _write_tokenizer(path, reader, target),
    )


class GgufTensors:
    """Tensors of one file."""

    def __init__(self, path: Path, reader: "GGUFReader") -> None:
        self._path = path
        self._tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in reader.tensors}
        self.shapes = {name: tuple(map(int, reversed(tensor.shape))) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        from gguf import dequantize

        tensor = self._tensors[name]
        values = _trusting_nothing(self._path, lambda: dequantize(tensor.data, tensor.tensor_type))
        return torch.from_numpy(values.astype("float32")).reshape(self.shapes[name])


def _model(reader: "GGUFReader") -> ModelConfig:
    if (found := _field(reader, "general.architecture")) != "llama":
        raise ValueError(f"its architecture is {found!r}; the engine reads llama")
    names = {tensor.name for tensor in reader.tensors}
    if "rope_freqs.weight" in names or "llama.rope.scaling.type" in reader.fields:
        raise ValueError("its RoPE is scaled, which the decoder doesn't compute")
    layers = int(_field(reader, "llama.block_count"))
    if layers > len(names):
        raise ValueError(f"it holds {len(names)} tensors and claims {layers} layers")
    embedding = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    return ModelConfig(
        family="llama",
        vocab=int(embedding.shape[1]),
        layers=layers,
        hidden=int(_field(reader, "llama.embedding_length")),
        heads=int(_field(reader, "llama.attention.head_count")),
        kv_heads=int(_field(reader, "llama.attention.head_count_kv")),
        ffn=int(_field(reader, "llama.feed_forward_length")),
        rope_base=float(_field(reader, "llama.rope.freq_base")),
        norm_eps=float(_field(reader, "llama.attention.layer_norm_rms_epsilon")),
        tie_embeddings="output.weight" not in names,
    )


def _field(reader: "GGUFReader", key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise ValueError(f"it doesn't say {key}")
    return field.contents()


def _write_tokenizer(path: Path, reader: "GGUFReader", target: Path) -> None:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise DataError("the tokenizer of a GGUF file needs transformers: pip install 'internevo-engine[hf]'") from None
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(target)
    ids = {f"{name}_token_id": _field(reader, f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    write_json(target / "generation_config.json", ids)


def _trusting_nothing(path: Path, read: Callable[[], T]) -> T:
    """What a damaged file makes the package do is the file's fault."""
    try:
        return read()
    except Exception as error:
        raise DataError(f"{path} can't be read as GGUF: {type(error).__name__}: {error}") from error
