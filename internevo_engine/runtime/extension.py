"""runtime: the door to the compiled libraries. Everything above calls the typed functions here, never torch.ops.

Hands on the kernels `adamw_`, `square_sum` and `checksums`, and `GradBuckets`, which accumulates and reduces gradients.
`load_extension` comes first, once per process, at any place before the first use.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, reduce
from importlib.util import find_spec

import torch
from torch import Tensor

from internevo_engine import _core
from internevo_engine.errors import ConfigError, EngineError

WORDS_PER_SUM = 68
"""int64 of an exact sum; see csrc/kernels/exact_sum.h."""

REBUILD = "build it for this environment: 'pip install .', or 'python setup.py build_ext --inplace' in a source tree"


def adamw_(
    master: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grad: Tensor,
    param_out: Tensor | None,
    grad_scale: Tensor,
    *,
    decayed_numel: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """One AdamW update (arXiv:1711.05101) of a flat buffer, in one pass, in place.

    master, exp_avg, exp_avg_sq and grad are contiguous fp32 tensors of equal length on one device; grad is read times
    the one element of grad_scale (fp32). Elements [0, decayed_numel) are decayed by lr * weight_decay. param_out gets
    the new master in its dtype, bf16 or fp32; None where the master is the parameter. step is 1 at the first update.
    A grad_scale of 0 skips the update: nothing is written, whatever grad holds.
    Raises RuntimeError for other tensors or settings. Moves 28 bytes per element, 30 with bf16, 32 with fp32 output.
    """
    settings = (decayed_numel, lr, beta1, beta2, eps, weight_decay, step)
    torch.ops.internevo.adamw_(master, exp_avg, exp_avg_sq, grad, param_out, grad_scale, *settings)


def square_sum(x: Tensor) -> Tensor:
    """Sum of squares of a contiguous fp32 tensor as a 0-dim fp64 tensor: equal bits for any number of threads."""
    return torch.ops.internevo.square_sum(x)


def checksums(x: Tensor, rows: int = 1) -> Tensor:
    """[rows] int64: the sum of the 32-bit words of each row of a contiguous tensor of any dtype, modulo 2**64.

    Raises RuntimeError where rows are not whole words. Reads each byte once.
    """
    return torch.ops.internevo.checksums(x, rows)


class GradBuckets:
    """Accumulates one step's gradients in flat fp32 buckets and sums them over ranks; see csrc/runtime/grad_buckets.h.

    For each micro-batch `begin(last=...)` and `add` for every gradient, then `finish()` once. flats[i] is the buffer
    of bucket i, its gaps zeroed. Parameter p lies in flats[bucket_of_param[p]] at offset_of_param[p], in elements.
    group_name names a torch.distributed process group, '' a world of one. Mistakes raise RuntimeError.
    """

    def __init__(
        self,
        flats: Sequence[Tensor],
        *,
        bucket_of_param: Sequence[int],
        offset_of_param: Sequence[int],
        numel_of_param: Sequence[int],
        group_name: str,
        overlap: bool,
    ) -> None:
        self._native = torch.classes.internevo.GradBuckets(
            list(flats), list(bucket_of_param), list(offset_of_param), list(numel_of_param), group_name, overlap
        )

    def begin(self, *, last: bool) -> None:
        """Start a micro-batch; `last` is the one after which the step's gradients are complete."""
        self._native.begin(last)

    def add(self, param: int, grad: Tensor) -> None:
        """Write (first time in the step) or add the gradient (fp32 or bf16) of a parameter."""
        self._native.add(param, grad)

    def finish(self) -> None:
        """Zero-fill parameters without a gradient, send what is left and wait until every bucket is summed."""
        self._native.finish()


def arm_faults(plan: str, *, seed: int, rank: int, log: str) -> None:
    """Arm the points of all libraries; see csrc/core/faults.h. Raises ConfigError where the plan can't be read."""
    load_extension()
    try:
        _core.arm_faults(plan, seed, rank, log)
    except ValueError as error:
        raise ConfigError(f"IE_FAULTS: {error}") from None
    torch.ops.internevo.arm_faults(plan, seed, rank, log)


def disarm_faults() -> None:
    """Nothing goes wrong any more."""
    _core.disarm_faults()
    torch.ops.internevo.disarm_faults()


def faults_in_step(step: int) -> None:
    """The step that is about to begin, from 1."""
    _core.faults_in_step(step)
    torch.ops.internevo.faults_in_step(step)


@cache
def load_extension() -> None:
    """Load the compiled libraries. Raises EngineError where one is missing or belongs to another torch."""
    paths = [library_path(name) for name in ("_core", "_ops", "_runtime")]
    check_torch(_core.TORCH_VERSION, torch.__version__)
    for path in paths[1:]:
        load_library(path)
    for name, fake in FAKE.items():
        torch.library.register_fake(f"internevo::{name}", fake)
    if not _core.HAS_CUDA_KERNELS:
        for name, composed in COMPOSED.items():
            torch.library.register_kernel(f"internevo::{name}", "cuda", composed)


def library_path(name: str) -> str:
    """Path of a compiled library; its spec is right in an editable install too, where this file may be elsewhere."""
    spec = find_spec(f"internevo_engine.{name}")
    if spec is None or spec.origin is None:
        raise EngineError(f"the native library internevo_engine/{name} is missing; {REBUILD}")
    return spec.origin


def check_torch(built_for: str, found: str) -> None:
    """c10d has no stable ABI, so only the torch release (2.13, whichever patch) that was built for will do."""
    if built_for.split(".")[:2] != found.split(".")[:2]:
        raise EngineError(f"native libraries built for torch {built_for} can't run with torch {found}; {REBUILD}")


def load_library(path: str) -> None:
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise EngineError(f"the native library {path} can't be loaded ({error}); {REBUILD}") from error


def composed_adamw_(
    master: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grad: Tensor,
    param_out: Tensor | None,
    grad_scale: Tensor,
    decayed_numel: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """`adamw_` in torch operations: the oracle of the tests, and CUDA's row where nvcc was not there at build time."""
    scaled = grad * grad_scale
    new_avg = exp_avg.lerp(scaled, 1 - beta1)
    new_avg_sq = exp_avg_sq.lerp(scaled.square(), 1 - beta2)
    root = new_avg_sq.sqrt().mul_(1 / math.sqrt(1 - beta2**step)).add_(eps)
    update = new_avg.mul(lr / (1 - beta1**step)).div_(root)
    update[:decayed_numel].add_(master[:decayed_numel], alpha=lr * weight_decay)
    states = [(master, master - update), (exp_avg, new_avg), (exp_avg_sq, new_avg_sq)]
    if param_out is not None:
        states.append((param_out, states[0][1].to(param_out.dtype)))
    for state, new in states:
        state.copy_(torch.where(grad_scale == 0, state, new))


def composed_square_sum(x: Tensor) -> Tensor:
    """`square_sum` in torch operations; its order of summation is torch's."""
    return x.double().square_().sum()


def composed_checksums(x: Tensor, rows: int) -> Tensor:
    """`checksums` in torch operations."""
    words = x.view(-1).view(torch.int32).view(rows, -1).to(torch.int64)
    return (words & 0xFFFFFFFF).sum(1)


def composed_exact_add_(words: Tensor, values: Tensor) -> None:
    """By way of the host, which waits for the device."""
    words.copy_(_on_host(torch.ops.internevo.exact_add_, words, values))


def composed_exact_add_squares_(words: Tensor, x: Tensor) -> None:
    words.copy_(_on_host(torch.ops.internevo.exact_add_squares_, words, x))


def composed_exact_values_(words: Tensor) -> Tensor:
    return torch.ops.internevo.exact_values_(words.cpu()).to(words.device)


def tree_sum(rows: Sequence[Tensor]) -> Tensor:
    """((0 + 1) + (2 + 3)) + ..., in torch operations."""
    sums = list(rows)
    while len(sums) > 1:
        sums = [reduce(torch.add, sums[i : i + 2]) for i in range(0, len(sums), 2)]
    return sums[0]


def composed_tree_sum_(out: Tensor, rows: Tensor) -> None:
    out.copy_(tree_sum(rows.float().unbind()))


def _on_host(add_: Callable[[Tensor, Tensor], None], words: Tensor, added: Tensor) -> Tensor:
    sums = words.cpu()
    add_(sums, added.cpu())
    return sums


def fake_in_place(*_tensors_and_numbers: object) -> None:
    """Nothing is returned, and shapes don't change."""


def fake_square_sum(x: Tensor) -> Tensor:
    return x.new_empty((), dtype=torch.float64)


def fake_checksums(x: Tensor, rows: int) -> Tensor:
    return x.new_empty(rows, dtype=torch.int64)


def fake_exact_values_(words: Tensor) -> Tensor:
    return words.new_empty(words.numel() // WORDS_PER_SUM, dtype=torch.float64)


FAKE: dict[str, Callable[..., Tensor | None]] = {
    "adamw_": fake_in_place,
    "square_sum": fake_square_sum,
    "checksums": fake_checksums,
    "exact_add_": fake_in_place,
    "exact_add_squares_": fake_in_place,
    "exact_values_": fake_exact_values_,
    "tree_sum_": fake_in_place,
}
COMPOSED: dict[str, Callable[..., Tensor | None]] = {
    "adamw_": composed_adamw_,
    "square_sum": composed_square_sum,
    "checksums": composed_checksums,
    "exact_add_": composed_exact_add_,
    "exact_add_squares_": composed_exact_add_squares_,
    "exact_values_": composed_exact_values_,
    "tree_sum_": composed_tree_sum_,
}
