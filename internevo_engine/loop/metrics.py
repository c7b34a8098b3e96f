"""loop: what a step is worth. Turns a StepResult and a duration into the record of metrics.jsonl and the log line."""

from collections.abc import Mapping
from dataclasses import dataclass

from internevo_engine.config.inputs import LoraConfig, ModelConfig
from internevo_engine.engine import StepResult
from internevo_engine.models.flops import internevo_flops_per_token, model_flops

PEAK_TFLOPS: Mapping[str, float] = {
    "A100": 312,
    "A800": 312,
    "H100 PCIe": 756,
    "H100": 989,
    "H800": 989,
    "H200": 989,
    "GH200": 989,
    "B200": 2250,
}
"""Dense bf16 peak by a part of the device's name, from NVIDIA's data sheets; the first row that matches counts."""


@dataclass(frozen=True)
class StepMetrics:
    """One line of metrics.jsonl. Rates are per rank."""

    step: int
    """Updates done, counted from 1."""
    loss: float
    """Mean over valid tokens, in nats."""
    grad_norm: float
    lr: float
    tokens: int
    """Tokens consumed since the start, over all ranks."""
    tgs: float
    """Tokens per rank per second."""
    tflops: float
    """True model FLOPs (causal attention, no recomputation), per rank per second, in 1e12."""
    tflops_internevo: float
    """By InternEvo's formula (full attention, nominal widths), for comparison with its tables."""
    mfu: float | None
    """tflops over the device's bf16 peak; None where the peak is unknown."""
    step_ms: float
    skipped: int
    """Batches left out since the start; RUN/skipped.jsonl says which and why."""


@dataclass(frozen=True)
class Meter:
    """The fixed facts of a run from which rates follow."""

    model: ModelConfig
    lora: LoraConfig
    seq_len: int
    world: int
    device_name: str

    def measure(
        self,
        result: StepResult,
        *,
        step: int,
        tokens: int,
        step_tokens: int,
        squared_lengths: int,
        seconds: float,
        skipped: int,
    ) -> StepMetrics:
        """Rates of one step.

        Args:
            step: updates done.
            tokens: valid tokens since the start, over all ranks.
            step_tokens: positions computed in this step, over all ranks.
            squared_lengths: sum of the squared piece lengths of this rank's micro-batches.
            seconds: duration of the step.
            skipped: batches left out since the start.
        """
        local_tokens = step_tokens // self.world
        tflops = model_flops(self.model, local_tokens, squared_lengths, self.lora) / seconds / 1e12
        internevo = internevo_flops_per_token(self.model, self.seq_len) * local_tokens / seconds / 1e12
        peak = next((value for name, value in PEAK_TFLOPS.items() if name in self.device_name), None)
        return StepMetrics(
            step=step,
            loss=result.loss,
            grad_norm=result.grad_norm,
            lr=result.lr,
            tokens=tokens,
            tgs=local_tokens / seconds,
            tflops=tflops,
            tflops_internevo=internevo,
            mfu=tflops / peak if peak else None,
            step_ms=seconds * 1e3,
            skipped=skipped,
        )


def as_line(metrics: StepMetrics, num_steps: int) -> str:
    """One aligned line."""
    mfu = "" if metrics.mfu is None else f"  mfu {metrics.mfu:5.1%}"
    return (
        f"step {metrics.step:>{len(str(num_steps))}}/{num_steps}  loss {metrics.loss:7.4f}  "
        f"grad_norm {metrics.grad_norm:7.3f}  lr {metrics.lr:.2e}  tokens {metrics.tokens:>11,}  "
        f"tgs {metrics.tgs:>8,.0f}  tflops {metrics.tflops:7.3f}{mfu}  {metrics.step_ms:8.1f} ms"
    )
