"""plan: published runs, read from a CSV file. Hands `Run`s to plan/closed_form.py, which predicts what they reached,
and says of each row that can't be modelled why.

The columns are those of published_throughput.csv; units stand at the fields. A row whose notes say that its source
contradicts itself (FLAGS) is left out.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from internevo_engine.errors import DataError
from internevo_engine.plan.cluster import PRESETS, Cluster, LinkRate

FLAGS = ("INCONSISTENT", "SUSPECT", "OUTLIER", "DUPLICATE", "SOURCE ERROR")

# Dense bf16 TFLOPS, memory in GB and GB/s: NVIDIA's data sheets, SXM where there are several.
DEVICES: Mapping[str, tuple[float, float, float]] = {
    "A100-40": (312, 40, 1555),
    "A100": (312, 80, 2039),
    "A800": (312, 80, 2039),
    "H100": (989, 80, 3350),
    "H800": (989, 80, 3350),
    "H200": (989, 141, 4800),
    "V100": (125, 32, 900),
}


@dataclass(frozen=True)
class Run:
    """One row that can be modelled."""

    id: str
    system: str
    model: str
    variant: str
    """What the first words of the notes say, figures aside."""
    cluster: Cluster
    gpus: int
    params: int
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int
    seq_len: int
    micro_batch: int
    """Sequences."""
    grad_accum: int
    tensor_parallel: int
    zero_param: int
    """Data-parallel ranks that share one copy, as in the next two."""
    zero_grad: int
    zero_optim: int
    recompute: str
    flash: str
    """Which attention kernel, as published."""
    tokens_per_gpu_s: float

    @property
    def data_parallel(self) -> int:
        return self.gpus // self.tensor_parallel

    @property
    def micro_batch_tokens(self) -> int:
        return self.seq_len * self.micro_batch

    @property
    def series(self) -> tuple[str, str, str]:
        """Runs of one table: they share what is not modelled of their system."""
        return self.system, self.model, self.variant

    @property
    def layer_matmuls(self) -> int:
        """Elements of a layer's matrices; of the feed-forward layer two or three, as the parameter count says."""
        attention = self.hidden**2 * 2 + 2 * self.hidden * (self.hidden // self.heads) * self.kv_heads
        of_layer = (self.params - self.vocab * self.hidden) / self.layers
        return min((attention + n * self.hidden * self.ffn for n in (2, 3)), key=lambda numel: abs(numel - of_layer))

    def step_s(self, tokens_per_gpu_s: float) -> float:
        """Seconds of a step at that throughput, and the other way round."""
        return self.micro_batch_tokens * self.grad_accum / self.tensor_parallel / tokens_per_gpu_s


def read_runs(path: Path) -> tuple[list[Run], dict[str, str]]:
    """The runs of a file, and for each other row its id and why it can't be modelled.

    Raises:
        DataError: no such file, or a column is missing.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a CSV file with the columns of published_throughput.csv")
    runs: list[Run] = []
    skipped: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                reason = _why_not(row)
                if reason:
                    skipped[row["id"]] = reason
                else:
                    runs.append(_run(row))
            except KeyError as error:
                raise DataError(f"{path}: column {error} is missing") from None
            except ValueError as error:
                skipped[row["id"]] = f"unreadable: {error}"
    return runs, skipped


def _why_not(row: Mapping[str, str]) -> str:
    """Empty if the row can be modelled."""
    flags = [flag for flag in FLAGS if flag in row["notes"]]
    if flags:
        return f"its source contradicts itself or repeats itself ({flags[0]} in its notes)"
    needed = ("tokens_per_gpu_s", "gpus", "micro_bsz", "seq_len", "params", "layers", "hidden", "ffn", "heads", "vocab")
    missing = [name for name in needed if not row[name]]
    if missing:
        return f"no {missing[0]}"
    if not (row["grad_acc"] or row["global_batch_tokens"]):
        return "neither grad_acc nor global_batch_tokens"
    for key, what in (("pp", "pipeline parallelism"), ("sp", "sequence or context parallelism")):
        if (row[key] or "1") != "1":
            return f"{what} is not modelled ({key}={row[key]})"
    if " CP " in row["notes"] and " CP 1" not in row["notes"]:
        return "sequence or context parallelism is not modelled (CP in its notes)"
    if _device(row["gpu_type"]) is None:
        return f"no data of {row['gpu_type'] or 'an unnamed device'}"
    return ""


def _device(name: str) -> tuple[float, float, float] | None:
    flat = name.replace("-SXM4", "").replace("-SXM", "").replace("-PCIe", "")
    return next((facts for prefix, facts in DEVICES.items() if flat.startswith(prefix)), None)


def _cluster(row: Mapping[str, str]) -> Cluster:
    peak, memory, rate = _device(row["gpu_type"]) or (0, 0, 0)
    gpus_per_node = int(row["gpus_per_node"] or 8)
    near = LinkRate(gb_per_s=float(row["intra_bw"] or 300), hop_us=PRESETS["a100-80g-4x100g"].near.hop_us)
    far_gb_per_s = float(row["inter_bw"] or 100 * gpus_per_node) / 8
    return Cluster(
        source=row["source"],
        device="cuda",
        ranks_per_node=gpus_per_node,
        peak_tflops=peak,
        memory_gb=memory,
        memory_gb_per_s=rate,
        near=near,
        far=LinkRate(gb_per_s=far_gb_per_s, hop_us=PRESETS["a100-80g-4x100g"].far.hop_us),
    )


def _run(row: Mapping[str, str]) -> Run:
    number = {key: int(float(row[key] or 1)) for key in (*_SIZES, "tp", "zero_p", "zero_g", "zero_os", "micro_bsz")}
    ranks = number["gpus"] // number["tp"]
    tokens = number["micro_bsz"] * number["seq_len"] * ranks
    return Run(
        id=row["id"],
        system=row["system"],
        model=row["model"],
        variant=_variant(row["notes"]),
        cluster=_cluster(row),
        **{key: number[key] for key in _SIZES},
        kv_heads=int(row["kv_heads"] or row["heads"]),
        micro_batch=number["micro_bsz"],
        grad_accum=int(row["grad_acc"] or round(int(row["global_batch_tokens"]) / tokens) or 1),
        tensor_parallel=number["tp"],
        zero_param=number["zero_p"],
        zero_grad=number["zero_g"],
        zero_optim=number["zero_os"],
        recompute=row["recompute"] or "none",
        flash=row["flash_attn"],
        tokens_per_gpu_s=float(row["tokens_per_gpu_s"]),
    )


_SIZES = ("gpus", "params", "layers", "hidden", "ffn", "heads", "vocab", "seq_len")


def _variant(notes: str) -> str:
    words: Sequence[str] = re.sub(r"[-\d.%()]+|MFU|HFU", " ", notes.split(";")[0]).split()
    return " ".join(words)
