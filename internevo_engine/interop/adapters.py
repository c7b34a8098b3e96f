"""interop: low-rank adapters in peft's format, out and in, and merged into the weights beside which they were trained.

    adapter_config.json          rank, alpha, targets, where the base is
    adapter_model.safetensors    base_model.model.<projection, as Llama calls it>.lora_A.weight, .lora_B.weight
    base.json                    the base again, with the digest of its weights (ours; peft doesn't read it)

A LoRA run's `final` holds these. peft loads them beside what `convert hf` writes of the base.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from internevo_engine.config.inputs import LoraConfig, ModelConfig, Target
from internevo_engine.errors import DataError
from internevo_engine.interop.folder import write_json
from internevo_engine.interop.names import HF_LLAMA
from internevo_engine.interop.tensors import OpenTensors, SafetensorsFiles, Tensors, read_json
from internevo_engine.models.families import architecture, is_adapter, parameters, projections
from internevo_engine.plan.params import Param

SETTINGS, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".pt")


class Base(BaseModel):
    """The frozen weights beside which adapters were trained."""

    model_config = ConfigDict(frozen=True)

    path: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Base":
        """Read every byte of the weights at `path`: a folder (or a run's) or a file.

        Raises:
            DataError: nothing is there.
        """
        if not path.exists():
            raise DataError(f"{path}: no such weights; name an engine folder, a run or a Hugging Face folder")
        root = path / "final" if (path / "final").is_dir() else path
        files = [root] if root.is_file() else sorted(f for f in root.iterdir() if f.suffix in WEIGHT_SUFFIXES)
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as raw:
                digest.update(hashlib.file_digest(raw, "sha256").digest())
        return cls(path=str(path.resolve()), sha256=digest.hexdigest())


class PeftConfig(BaseModel):
    """What of adapter_config.json decides what the tensors mean; variants that the engine can't compute are refused."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    peft_type: Literal["LORA"]
    base_model_name_or_path: str | None = None
    r: Annotated[int, Field(gt=0)]
    lora_alpha: Annotated[float, Field(gt=0)]
    target_modules: list[Target]
    bias: Literal["none"] = "none"
    use_rslora: Literal[False] = False
    use_dora: Literal[False] = False
    fan_in_fan_out: Literal[False] = False
    modules_to_save: None = None
    layers_to_transform: None = None
    rank_pattern: dict[str, int] = Field(default={}, max_length=0)
    alpha_pattern: dict[str, int] = Field(default={}, max_length=0)

    @property
    def lora(self) -> LoraConfig:
        return LoraConfig(rank=self.r, alpha=self.lora_alpha, targets=tuple(self.target_modules))


def write_adapters(
    folder: Path, weights: Mapping[str, Tensor], model: ModelConfig, lora: LoraConfig, base: Base
) -> None:
    """Write the three files. `weights`: at least the adapters, under our names."""
    names = peft_names(model, lora)
    save_file({theirs: weights[param.name] for param, theirs in names}, folder / WEIGHTS, metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.path,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(lora.targets),
        "bias": "none",
        "inference_mode": True,
    }
    write_json(folder / SETTINGS, settings)
    write_json(folder / BASE, base.model_dump())


def peft_names(model: ModelConfig, lora: LoraConfig) -> list[tuple[Param, str]]:
    """Our adapters, and what peft calls them on a Llama."""
    return [(param, _peft_name(param)) for param in parameters(model, lora) if is_adapter(param.name)]


def _peft_name(param: Param) -> str:
    module, part, half = param.name.rsplit(".", 2)
    layer = str(param.layer - 1)
    theirs, _ = HF_LLAMA[module.replace(f"layers.{layer}.", "layers.{}.", 1)]
    name = next(name for name in theirs if name.endswith(part))
    return f"base_model.model.{name.format(layer)}.{half}.weight"


def read_settings(folder: Path) -> PeftConfig:
    """Raises DataError where the adapters are none that the engine computes."""
    try:
        return PeftConfig.model_validate_json(json.dumps(read_json(folder / SETTINGS)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{folder / SETTINGS}: {place}={first['input']!r}: {first['msg']}; the engine knows plain LoRA on the "
            "projections of a Llama"
        ) from None


class Adapters:
    """The tensors of an opened folder, under our names."""

    def __init__(self, folder: Path, model: ModelConfig, lora: LoraConfig) -> None:
        """Read the header.

        Raises:
            DataError: it holds other tensors than `model` with `lora` has.
        """
        self._files = SafetensorsFiles([folder / WEIGHTS])
        self._names = {param.name: theirs for param, theirs in peft_names(model, lora)}
        self.shapes = {param.name: param.shape for param, _ in peft_names(model, lora)}
        wanted = {theirs: param.shape for param, theirs in peft_names(model, lora)}
        if wanted != self._files.shapes:
            wrong = min(dict(wanted.items() ^ self._files.shapes.items()))
            self._files.__exit__()
            raise DataError(f"{folder / WEIGHTS} holds other adapters than the model has, for example {wrong}")

    def read(self, name: str) -> Tensor:
        return self._files.read(self._names[name])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.__exit__()


class MergedTensors:
    """A base's tensors under our names; adapters are added to each as it is read, in fp32."""

    def __init__(self, base: OpenTensors, adapters: Adapters, model: ModelConfig, lora: LoraConfig) -> None:
        self.shapes = base.shapes
        self._base, self._adapters, self._scale = base, adapters, lora.alpha / lora.rank
        self._places = defaultdict[str, list[tuple[int, str]]](list)
        for name, first in _places(model, adapters):
            self._places[f"{name.rpartition('.')[0]}.weight"].append((first, name))

    def read(self, name: str) -> Tensor:
        weight = self._base.read(name)
        if name not in self._places:
            return weight
        merged = weight.float().clone()
        for first, adapter in self._places[name]:
            half_a, half_b = (self._adapters.read(f"{adapter}.{half}").float() for half in ("lora_A", "lora_B"))
            merged.narrow(0, first, len(half_b)).add_(half_b @ half_a, alpha=self._scale)
        return merged.to(weight.dtype)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._adapters.__exit__(*error)
        self._base.__exit__(*error)


def _places(model: ModelConfig, adapters: Tensors) -> Iterator[tuple[str, int]]:
    """('layers.0.attention.wqkv.v_proj', first of its rows) of each adapter."""
    for layer in range(model.layers):
        for module, projection in projections(architecture(model)).items():
            first = 0
            for part, rows in projection.parts.items():
                name = f"layers.{layer}.{module}.{part}"
                if f"{name}.lora_A" in adapters.shapes:
                    yield name, first
                first += rows
