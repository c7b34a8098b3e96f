"""runtime: what loss and gradient norm of a step may at most be. Known before the step, so that the device can decide.

The same comparison of the same doubles is made on the device (csrc/runtime/totals.cpp), before it updates anything, and
here, to say what was wrong.
"""

from dataclasses import dataclass
from math import inf, isfinite


@dataclass(frozen=True)
class Limits:
    """Equal on all ranks. A step that is above one of them updates nothing, and so does one that is not finite."""

    loss: float = inf
    """Mean over what the loss function counted."""
    grad_norm: float = inf
    """Global norm of the mean gradient, before clipping."""

    def complaint(self, loss: float, grad_norm: float) -> str:
        """What is wrong with a step; '' where it may update."""
        if not (isfinite(loss) and isfinite(grad_norm)):
            return f"loss is {loss}, gradient norm {grad_norm}"
        found = (("loss", loss, self.loss), ("gradient norm", grad_norm, self.grad_norm))
        return " and ".join(f"{name} {value:.6g} is above {most:.6g}" for name, value, most in found if value > most)


NO_LIMITS = Limits()
"""Whatever is finite."""
