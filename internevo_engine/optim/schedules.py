"""optim: where a learning rate becomes a number. A schedule is a pure function of the step; nothing is stored.

Every schedule starts with init_steps at 0 and a linear warm-up (InternEvo's keys), then takes its own shape.
"""

from collections.abc import Callable, Mapping
from math import cos, pi

from internevo_engine.config.schema import OptimConfig

Shape = Callable[[OptimConfig, float, float], float]
"""(config, progress after the warm-up in [0, 1], share of it spent in the final decay) -> learning rate."""


def _cosine(optim: OptimConfig, progress: float, _decay_share: float) -> float:
    return optim.eta_min + (optim.lr - optim.eta_min) * (1 + cos(pi * progress)) / 2


def _stable_then_decay(optim: OptimConfig, progress: float, decay_share: float) -> float:
    """Warm-up-stable-decay (arXiv:2404.06395) with a linear decay."""
    if progress <= 1 - decay_share:
        return optim.lr
    return optim.eta_min + (optim.lr - optim.eta_min) * (1 - progress) / decay_share


def _constant(optim: OptimConfig, _progress: float, _decay_share: float) -> float:
    return optim.lr


SHAPES: Mapping[str, Shape] = {"cosine": _cosine, "wsd": _stable_then_decay, "constant": _constant}


def learning_rate(optim: OptimConfig, step: int, num_steps: int | None) -> float:
    """Learning rate of update number `step`, counted from 0, in a run of `num_steps`.

    The last warm-up step reaches optim.lr, the last step of cosine and wsd reaches optim.eta_min. In a run without a
    known end (None) the rate is optim.lr after init_steps.
    """
    if num_steps is None:
        return optim.lr if step >= optim.init_steps else 0.0
    warmup_steps = round(optim.warmup_ratio * num_steps)
    first = optim.init_steps + warmup_steps
    if step < optim.init_steps:
        return 0.0
    if step < first:
        return optim.lr * (step - optim.init_steps + 1) / warmup_steps
    shaped_steps = max(1, num_steps - first)
    decay_share = min(1.0, optim.decay_ratio * num_steps / shaped_steps)
    return SHAPES[optim.schedule](optim, min(1.0, (step - first + 1) / shaped_steps), decay_share)
