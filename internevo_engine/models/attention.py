"""models: attention over a pack of documents, and the table of kernels that can do it.

Called by models/decoder.py once a layer. Every row computes the same function; `choose` takes the first one that the
machine can run, so the decoder never asks where it is.

Legend: P packed tokens, N query heads, K key/value heads (K divides N), H head size, D pieces.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import groupby, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


def packed_attention(q_PNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, cu_seqlens: Tensor, max_len: int) -> Tensor:
    """Causal softmax attention inside each piece of the pack; no token attends to another piece. Returns [P, N, H].

    cu_seqlens: int32 [D + 1], cumulative lengths of the pieces, from 0 to P. max_len: a bound on the length of a piece,
    in tokens; a number known beforehand, so that no kernel has to ask the device for the true maximum.
    """
    return _backend(q_PNH.device, q_PNH.dtype).attend(q_PNH, k_PKH, v_PKH, cu_seqlens, max_len)


@dataclass(frozen=True)
class Facts:
    """What decides the choice of a kernel."""

    device: str
    """Device type: cpu, cuda."""
    capability: tuple[int, int]
    """CUDA compute capability; (0, 0) elsewhere."""
    dtype: torch.dtype
    flash_attn: bool
    """The package flash-attn is installed."""

    @property
    def runs_flash(self) -> bool:
        """FlashAttention kernels need A100 or newer and a 16-bit dtype."""
        return self.device == "cuda" and self.capability >= (8, 0) and self.dtype in (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Backend:
    """A row of the table: a kernel and where it runs."""

    name: str
    available: Callable[[Facts], bool]
    attend: Attend


def attend_flash(q_PNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, cu_seqlens: Tensor, max_len: int) -> Tensor:
    """FlashAttention-2 (arXiv:2307.08691) from the flash-attn package. Not yet run on a GPU."""
    varlen = import_module("flash_attn").flash_attn_varlen_func
    return varlen(q_PNH, k_PKH, v_PKH, cu_seqlens, cu_seqlens, max_len, max_len, causal=True)


def attend_varlen(q_PNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, cu_seqlens: Tensor, max_len: int) -> Tensor:
    """The FlashAttention that PyTorch ships. A window of (-1, 0) is its name for causal. Not yet run on a GPU."""
    pieces = (cu_seqlens, cu_seqlens, max_len, max_len)
    out_PNH = varlen_attn(q_PNH, k_PKH, v_PKH, *pieces, window_size=(-1, 0), enable_gqa=True)
    assert isinstance(out_PNH, Tensor)  # a tuple only on request
    return out_PNH


def attend_sdpa(q_PNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, cu_seqlens: Tensor, max_len: int) -> Tensor:
    """Runs anywhere: one scaled_dot_product_attention for each run of neighbouring pieces of equal length.

    Long documents are cut into many equal pieces, so the runs are few. Reads cu_seqlens on the host: free on the CPU,
    a synchronization on a GPU (where it has not yet been run).
    """
    runs = equal_runs(cu_seqlens)
    sizes = [num_pieces * length for num_pieces, length in runs]
    qkv_of_runs = zip(q_PNH.split(sizes), k_PKH.split(sizes), v_PKH.split(sizes), strict=True)
    return torch.cat([_attend_run(*qkv, num_pieces) for qkv, (num_pieces, _) in zip(qkv_of_runs, runs, strict=True)])


def equal_runs(cu_seqlens: Tensor) -> list[tuple[int, int]]:
    """[0, 4, 8, 11] -> [(2, 4), (1, 3)]: (number of pieces, length of each), in order."""
    lengths = [stop - start for start, stop in pairwise(cu_seqlens.tolist())]
    return [(len(list(run)), length) for length, run in groupby(lengths)]


def _attend_run(q_PNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, num_pieces: int) -> Tensor:
    q, k, v = (x.unflatten(0, (num_pieces, -1)).transpose(1, 2) for x in (q_PNH, k_PKH, v_PKH))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(0, 1)


BACKENDS = (
    Backend("flash-attn", lambda facts: facts.runs_flash and facts.flash_attn, attend_flash),
    Backend("torch-varlen", lambda facts: facts.runs_flash, attend_varlen),
    Backend("sdpa", lambda facts: True, attend_sdpa),
)
"""Best first; the last one runs anywhere."""


def choose(facts: Facts) -> Backend:
    """The first row of BACKENDS that these facts allow."""
    return next(backend for backend in BACKENDS if backend.available(facts))


@cache
def _backend(device: torch.device, dtype: torch.dtype) -> Backend:
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    return choose(Facts(device.type, capability, dtype, flash_attn=find_spec("flash_attn") is not None))
