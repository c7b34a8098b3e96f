"""InternEvo's checkpoints: both layouts, both meanings of w2, tensor, pipeline and weight parallelism.

The reference names every tensor by hand; a checkpoint is cut as InternEvo's ranks hold it.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from internevo_engine.__main__ import main
from internevo_engine.config.load import dump_config
from internevo_engine.config.schema import Config, DataConfig, ModelConfig
from internevo_engine.errors import DataError
from internevo_engine.interop.import_engine import import_engine
from internevo_engine.interop.sources import Hints
from tests.interop.folders import SEQ_LEN, decoder_of, read_engine, tiny, weights_of, write_tokenizer

V1 = tiny("internlm", kv_heads=4)
V2 = tiny("internlm2")
State = dict[str, Tensor]


def hints(model: ModelConfig, **keys: object) -> Hints:
    return Hints(Config(model=model, data=DataConfig(seq_len=SEQ_LEN)), **keys)


def as_v1(ours: State, *, w2_is_up: bool) -> State:
    found = {name: ours[f"{old}.weight"] for name, old in (("embedding.weight", "embedding"), ("head.weight", "head"))}
    found["norm.weight"] = ours["norm.weight"]
    for i in range(2):
        old, new = f"layers.{i}", f"blocks.{i}"
        gate, up = ours[f"{old}.feed_forward.w13.weight"].chunk(2)
        down = ours[f"{old}.feed_forward.w2.weight"]
        for kind in ("weight", "bias"):
            found[f"{new}.mixer.Wqkv.{kind}"] = ours[f"{old}.attention.wqkv.{kind}"]
            found[f"{new}.mixer.out_proj.{kind}"] = ours[f"{old}.attention.wo.{kind}"]
        found[f"{new}.mlp.w1.weight"] = gate
        found[f"{new}.mlp.w2.weight"], found[f"{new}.mlp.w3.weight"] = (up, down) if w2_is_up else (down, up)
        found[f"{new}.norm1.weight"] = ours[f"{old}.attention_norm.weight"]
        found[f"{new}.norm2.weight"] = ours[f"{old}.ffn_norm.weight"]
    return found


def paired(rows: Tensor) -> Tensor:
    """Heads of 8 rows, from rotate-half to neighbours."""
    return torch.cat([head[[0, 4, 1, 5, 2, 6, 3, 7]] for head in rows.split(8)])


def as_v2(ours: State, *, fused: bool, interleaved: bool) -> State:
    found = {"tok_embeddings.weight": ours["embedding.weight"], "output.weight": ours["head.weight"]}
    found["norm.weight"] = ours["norm.weight"]
    for i in range(2):
        name = f"layers.{i}"
        q, k, v = ours[f"{name}.attention.wqkv.weight"].split((32, 16, 16))
        if interleaved:
            q, k = paired(q), paired(k)
        if fused:
            parts = [part[size * g : size * g + size] for g in range(2) for part, size in ((q, 16), (k, 8), (v, 8))]
            found[f"{name}.attention.wqkv.weight"] = torch.cat(parts)
        else:
            found |= {f"{name}.attention.w{letter}.weight": part for letter, part in zip("qkv", (q, k, v), strict=True)}
        gate, up = ours[f"{name}.feed_forward.w13.weight"].chunk(2)
        found[f"{name}.feed_forward.w1.weight"], found[f"{name}.feed_forward.w3.weight"] = gate, up
        for same in ("attention.wo", "feed_forward.w2", "attention_norm", "ffn_norm"):
            found[f"{name}.{same}.weight"] = ours[f"{name}.{same}.weight"]
    return found


def tensor_parallel(name: str, tensor: Tensor, size: int) -> list[Tensor]:
    """How InternEvo cuts a tensor over `size` ranks of a tensor group."""
    if "norm" in name or name.endswith("out_proj.bias"):
        return [tensor] * size
    if "Wqkv" in name:
        return [part.flatten(0, 1) for part in tensor.unflatten(0, (3, -1)).chunk(size, dim=1)]
    is_down = name.split(".")[-2] in ("w2", "w3") and tensor.shape[0] == 32
    by_columns = is_down or "embed" in name or "out_proj" in name or ".wo." in name
    return list(tensor.chunk(size, dim=1 if by_columns else 0))


def weight_parallel(name: str, tensor: Tensor, size: int) -> list[Tensor]:
    return [tensor] * size if "norm" in name else list(tensor.chunk(size))


def save(
    folder: Path, state: State, *, kind: str = "tp", size: int = 1, stages: int = 1, prefix: str = "", **extra: object
) -> Path:
    """A checkpoint folder; with two stages the second begins with layer 0 again."""
    folder.mkdir()
    cut: Callable[[str, Tensor, int], list[Tensor]] = {"tp": tensor_parallel, "wp": weight_parallel}[kind]
    for stage in range(stages):
        own = {}
        for name, tensor in state.items():
            if ".1." in name:
                home, local = stages - 1, name.replace(".1.", ".0." if stages == 2 else ".1.")
            else:
                home, local = (stages - 1 if name.split(".")[0] in ("norm", "head", "output") else 0), name
            if home == stage:
                own[prefix + local] = cut(name, tensor, size)
        for shard in range(size):
            part = {name: pieces[shard].clone() for name, pieces in own.items()}
            torch.save({**part, **extra}, folder / f"model_{kind}{shard}_pp{stage}.pt")
    torch.save({"pickled": Path("by InternEvo")}, folder / "model_config.pt")
    return folder


def assert_read(folder: Path, out: Path, ours: State, given: Hints) -> None:
    import_engine(folder, out, given)
    found = weights_of(read_engine(out))
    assert found.keys() == ours.keys()
    for name, tensor in ours.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("w2_is_up", "cut"), [(False, {"size": 2, "stages": 2, "prefix": "model."}), (True, {"kind": "wp", "size": 2})]
)
def test_v1(tmp_path: Path, w2_is_up: bool, cut: dict) -> None:
    ours = weights_of(decoder_of(V1))
    folder = save(tmp_path / "ckpt", as_v1(ours, w2_is_up=w2_is_up), **cut)
    assert_read(folder, tmp_path / "engine", ours, hints(V1))


@pytest.mark.parametrize(
    ("fused", "interleaved", "cut"),
    [
        (True, False, {"size": 2, "stages": 2, "prefix": "model."}),
        (True, True, {"kind": "wp", "size": 2}),
        (False, True, {"size": 2}),
    ],
)
def test_v2(tmp_path: Path, fused: bool, interleaved: bool, cut: dict) -> None:
    ours = weights_of(decoder_of(V2))
    folder = save(tmp_path / "ckpt", as_v2(ours, fused=fused, interleaved=interleaved), **cut)
    assert_read(folder, tmp_path / "engine", ours, hints(V2, qk_interleaved=interleaved))


def test_square_shards_of_w2_need_a_word(tmp_path: Path) -> None:
    model = tiny("internlm", kv_heads=4, ffn=64)
    ours = weights_of(decoder_of(model))
    folder = save(tmp_path / "ckpt", as_v1(ours, w2_is_up=False), size=2)
    with pytest.raises(DataError, match="--w2 down"):
        import_engine(folder, tmp_path / "engine", hints(model))
    assert_read(folder, tmp_path / "engine", ours, hints(model, w2="down"))


def test_the_command_line_reads_a_checkpoint_with_a_config_and_a_tokenizer(tmp_path: Path, capsys) -> None:
    ours = weights_of(decoder_of(V2))
    folder = save(tmp_path / "ckpt", as_v2(ours, fused=True, interleaved=False))
    config = tmp_path / "model.yaml"
    config.write_text(dump_config(hints(V2).config))
    target, tokenizer = tmp_path / "engine", write_tokenizer(tmp_path / "t.model")
    assert main(["convert", "engine", str(folder), str(target)]) == 3
    assert "--config" in capsys.readouterr().err
    options = ["--config", str(config), "--tokenizer", str(tokenizer)]
    assert main(["convert", "engine", str(folder), str(target), *options]) == 0
    assert (target / "tokenizer.model").read_bytes() == tokenizer.read_bytes()
    assert torch.equal(read_engine(target).get_parameter("head.weight"), ours["head.weight"])


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "ckpt", as_v2(weights_of(decoder_of(V2)), fused=True, interleaved=False), size=2, stages=2)
    (folder / "model_tp1_pp0.pt").rename(folder / "model_tp1000000000000_pp0.pt")
    with pytest.raises(DataError, match="model_tp1_pp0.pt is missing"):
        import_engine(folder, tmp_path / "engine", hints(V2))


class Attack:
    """A pickle that would run a command."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self._mark,)  # pyright: ignore[reportReturnType]


def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    folder = save(
        tmp_path / "ckpt", as_v2(weights_of(decoder_of(V2)), fused=True, interleaved=False), attack=Attack(mark)
    )
    with pytest.raises(DataError, match=r"model_tp0_pp0.pt can't be read as tensors"):
        import_engine(folder, tmp_path / "engine", hints(V2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt"]


def test_another_model_s_config_is_noticed(tmp_path: Path) -> None:
    folder = save(tmp_path / "ckpt", as_v2(weights_of(decoder_of(V2)), fused=True, interleaved=False))
    with pytest.raises(DataError, match="2 tensors of another shape.*needs"):
        import_engine(folder, tmp_path / "engine", hints(V2.model_copy(update={"kv_heads": 4})))
