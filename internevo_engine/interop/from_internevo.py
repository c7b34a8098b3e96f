"""interop: an InternEvo checkpoint as a Source: model_tp*_pp*.pt or model_wp*_pp*.pt, of the v1 and v2 code.

Shards are put together along the dim in which they are smaller than the whole, pipeline stages by counting on their
layers. The checkpoint's own configuration is pickle that needs InternEvo's code, so a config of ours says what the
model is.
"""

import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from internevo_engine.config.schema import ModelConfig
from internevo_engine.errors import DataError
from internevo_engine.interop.layouts import GATE_UP, QKV, QKV_GROUPED, QKV_GROUPED_PAIRED, QKV_PAIRED, SAME, Layout
from internevo_engine.interop.names import INTERNEVO_V1, INTERNEVO_V2, Table, moves
from internevo_engine.interop.sources import Hints, Source
from internevo_engine.interop.tensors import SafetensorsFiles

_FILE = re.compile(r"model_(tp|wp)(\d+)_pp(\d+)\.pt")
_LAYER = re.compile(r"\b(blocks|layers)\.(\d+)\.")
_THIRDS = ("mixer.Wqkv.weight", "mixer.Wqkv.bias")
"""v1 under tensor parallelism: every shard has its own heads' queries, keys and values."""
_QKV, _W13, _W2 = "layers.{}.attention.wqkv", "layers.{}.feed_forward.w13", "layers.{}.feed_forward.w2"
PAIRED: Mapping[Layout, Layout] = {QKV: QKV_PAIRED, QKV_GROUPED: QKV_GROUPED_PAIRED}
"""What qk_interleaved makes of a layout."""

Place = tuple[SafetensorsFiles, str]
"""A shard's file, and what it calls the tensor."""


def is_internevo(folder: Path) -> bool:
    return any(_FILE.fullmatch(path.name) for path in folder.glob("model_*.pt"))


def open_internevo(folder: Path, hints: Hints, scratch: Path, stack: ExitStack) -> Source:
    """Turn every file into safetensors, in a process of its own, and find all shards of every tensor.

    Raises:
        DataError: no hints.config, shards are missing, or a file is not tensors only.
    """
    if hints.config is None:
        raise DataError(
            f"{folder}: the shape of an InternEvo model can't be read without InternEvo; name a YAML file of ours that "
            "describes it with --config, such as configs/internlm2_7B.yaml"
        )
    model, (kind, grid) = hints.config.model, _grid(folder)
    work = Path(stack.enter_context(TemporaryDirectory(prefix="internevo-", dir=scratch)))
    _unpickle([path for shards in grid for path in shards], work)
    files = [[SafetensorsFiles([work / f"{path.stem}.safetensors"]) for path in shards] for shards in grid]
    places = _places([[stack.enter_context(file) for file in shards] for shards in files])
    table = _table(places, model, hints)
    wanted = {name: shape for m in moves(table, model) for name, shape in zip(m.names, m.shapes, strict=True)}
    return Source(
        folder,
        model,
        table,
        ShardedTensors(places, wanted, has_own_heads=kind == "tp"),
        hints.config.data.seq_len,
        lambda target: None,
        ignored=(".inv_freq",),
    )


class ShardedTensors:
    """Whole tensors from their shards."""

    def __init__(
        self, places: Mapping[str, Sequence[Place]], wanted: Mapping[str, tuple[int, ...]], *, has_own_heads: bool
    ) -> None:
        """`wanted` tells a shard from a copy."""
        self._places, self._has_own_heads = places, has_own_heads
        self._dims = {name: _cut_dim(found, wanted[name]) for name, found in places.items() if name in wanted}
        self.shapes = {name: self._whole_shape(name) for name in places}

    def _whole_shape(self, name: str) -> tuple[int, ...]:
        shapes, dim = [_shape(place) for place in self._places[name]], self._dims.get(name)
        if dim is None:
            return shapes[0]
        return (*shapes[0][:dim], sum(shape[dim] for shape in shapes), *shapes[0][dim + 1 :])

    def read(self, name: str) -> Tensor:
        parts, dim = [file.read(local) for file, local in self._places[name]], self._dims[name]
        if dim is None:
            return parts[0]
        if self._has_own_heads and name.endswith(_THIRDS):
            return torch.cat([part.unflatten(0, (3, -1)) for part in parts], dim=1).flatten(0, 1)
        return torch.cat(parts, dim=dim)


def _shape(place: Place) -> tuple[int, ...]:
    file, name = place
    return file.shapes[name]


def _cut_dim(shards: Sequence[Place], whole: tuple[int, ...]) -> int | None:
    """The first dim in which a shard is not the whole; None: every rank has all of it."""
    pairs = enumerate(zip(_shape(shards[0]), whole, strict=False))
    return next((dim for dim, (part, full) in pairs if part != full), None) if len(shards) > 1 else None


def _grid(folder: Path) -> tuple[str, list[list[Path]]]:
    """'tp' or 'wp', and the files by stage and shard."""
    matches = [match for path in sorted(folder.glob("model_*.pt")) if (match := _FILE.fullmatch(path.name))]
    kind = matches[0][1]
    found = {(int(match[3]), int(match[2])): folder / match[0] for match in matches}
    num_stages, num_shards = (max(place[axis] for place in found) + 1 for axis in (0, 1))
    for stage, shard in ((stage, shard) for stage in range(num_stages) for shard in range(num_shards)):
        path = folder / f"model_{kind}{shard}_pp{stage}.pt"
        if found.get((stage, shard)) != path:
            raise DataError(f"{path} is missing; copy the checkpoint again")
    return kind, [[found[stage, shard] for shard in range(num_shards)] for stage in range(num_stages)]


def _unpickle(paths: Sequence[Path], work: Path) -> None:
    command = [sys.executable, "-m", "internevo_engine.interop.unpickle", work, *paths]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        said = result.stderr.strip().splitlines() or [f"reading {paths[0].parent} ended with {result.returncode}"]
        raise DataError(said[-1])


def _places(stages: Sequence[Sequence[SafetensorsFiles]]) -> dict[str, list[Place]]:
    """Every tensor under its name in the whole model: layers count on from stage to stage."""
    found, first_layer = defaultdict[str, list[Place]](list), 0
    for shards in stages:
        layers = {0}
        for file in shards:
            for local in file.shapes:
                name = local.removeprefix("model.").replace(".word_embeddings.", ".")
                if number := _LAYER.search(name):
                    layers.add(int(number[2]) + 1)
                    name = _LAYER.sub(f"{number[1]}.{int(number[2]) + first_layer}.", name, count=1)
                found[name].append((file, local))
        first_layer += max(layers)
    return found


def _table(places: Mapping[str, Sequence[Place]], model: ModelConfig, hints: Hints) -> Table:
    """The names that this checkpoint uses, by what it holds."""
    table = INTERNEVO_V1 if "blocks.0.norm1.weight" in places else INTERNEVO_V2
    (names, layout), w13, w2 = table[_QKV], table[_W13][0], table[_W2][0]
    if "layers.0.attention.wq.weight" in places:
        names, layout = tuple(f"layers.{{}}.attention.w{letter}" for letter in "qkv"), QKV
    if hints.qk_interleaved:
        layout = PAIRED.get(layout, layout)
    if (hints.w2 or _meaning_of_w2(places.get(f"{w2[0]}.weight".format(0)), model)) == "up":
        w13, w2 = (w13[0], *w2), w13[1:]
    return {**table, _QKV: (names, layout), _W13: (w13, GATE_UP), _W2: (w2, SAME)}


def _meaning_of_w2(shards: Sequence[Place] | None, model: ModelConfig) -> str:
    """w2 projects up in checkpoints before version 0.3, and down ever since; the shape says which."""
    rows, columns = _shape(shards[0]) if shards else (0, 0)
    count = len(shards or ())
    is_up = (rows * count, columns) == (model.ffn, model.hidden)
    if is_up and (rows, columns * count) == (model.hidden, model.ffn):
        raise DataError(
            f"w2 in shards of {rows} x {columns} may project up or down; say --w2 down for checkpoints of InternEvo "
            "0.3 and later, --w2 up for older ones"
        )
    return "up" if is_up else "down"
