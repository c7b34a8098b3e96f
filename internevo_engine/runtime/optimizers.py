"""runtime: one row per optimizer: which states it keeps, and the fused update of one flat shard.

A new optimizer is a row here, its name in config/schema.py, and a kernel in csrc/kernels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from internevo_engine.config.schema import OptimConfig
from internevo_engine.runtime.extension import adamw_


@dataclass(frozen=True)
class Shard:
    """What one rank updates of one bucket: flat, equally long tensors."""

    master: torch.Tensor
    """fp32."""
    states: tuple[torch.Tensor, ...]
    """fp32, in the order of Optimizer.states."""
    param: torch.Tensor | None
    """The parameter in the compute dtype, written in the same pass; None where the master is the parameter."""
    decayed_numel: int
    """Weight decay applies to the elements before this one."""


Update = Callable[[Shard, torch.Tensor, OptimConfig, torch.Tensor, float, int], None]
"""(shard, its gradient summed over all tokens of the step, config, gradient scale [1] fp32, learning rate, step counted
from 1): one update, in place. The scale makes the sum the clipped mean."""


@dataclass(frozen=True)
class Optimizer:
    """A row of OPTIMIZERS."""

    states: tuple[str, ...]
    """Names of the fp32 states beside the master."""
    update: Update


def _adamw(
    shard: Shard, grad: torch.Tensor, optim: OptimConfig, grad_scale: torch.Tensor, lr: float, step: int
) -> None:
    exp_avg, exp_avg_sq = shard.states
    beta1, beta2 = optim.betas
    adamw_(
        shard.master,
        exp_avg,
        exp_avg_sq,
        grad,
        shard.param,
        grad_scale,
        decayed_numel=shard.decayed_numel,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        step=step,
    )


OPTIMIZERS: Mapping[str, Optimizer] = {"adamw": Optimizer(("exp_avg", "exp_avg_sq"), _adamw)}
