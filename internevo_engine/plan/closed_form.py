"""plan: the step time of a published run in closed form, by the prices of plan/cost.py. plan/calibrate.py fits with it
and scores it.

These runs are other systems' steps, so there is no Program of ours to simulate; what each system overlaps with what is
told by its schedule. plan/estimate.py is the same for the engine's own step.

B, T, h: bytes, tokens of a micro-batch, width. FLOPs of a layer are those of its matrices and of the causal half of the
attention; bytes those of norms, rotary embedding, residuals and the gate, counted in bf16.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from internevo_engine.plan.cost import CONTENTION, Calibration, Group, matmul_s, memory_s, near_rate, ring_s
from internevo_engine.plan.published import Run

ATTENTION_EFFICIENCY: Mapping[str, float] = {"FA1": 0.30, "FA1-triton": 0.30, "FA2": 0.55, "FA3": 0.65, "SDPA": 0.55}
"""Share of peak FLOPs, as the authors of FlashAttention 1 to 3 published them for causal attention in bf16."""
HOST_SYNC_BUCKET = 512 * 2**20
"""Elements of a gradient bucket in InternEvo's code of July 2023."""
TENSORS_PER_LAYER = 9
"""InternLM's: query, key, value and output with biases in two, three of the feed-forward layer, two norms."""
OPTIMIZER_2023_BYTES, OPTIMIZER_2023_S = 80, 0.05
"""That code's optimizer: bytes that its unfused passes move for each owned element, and its launches."""
FUSED_OPTIMIZER_BYTES = 36
"""Of a fused one: reads gradient, master and moments, writes the last three and the parameter."""
ACCUMULATE_BYTES = 6
"""For each element of a bf16 gradient that is added to another."""


@dataclass(frozen=True)
class System(Calibration):
    """A calibration, and what only the system of July 2023 shows."""

    broadcast_hop_us: float = 6.5
    """One hop of a ring broadcast of one owner's parameters."""
    tensor_parallel_us: float = 250.0
    """What a tensor-parallel collective takes beyond its bytes, lower efficiency of narrower products included."""


@dataclass(frozen=True)
class Parts:
    """Seconds of one micro-batch on one rank, without the data-parallel collectives."""

    layer_forward: float
    layer_backward: float
    head_forward: float
    head_backward: float
    layers: int

    @property
    def backward(self) -> float:
        return self.head_backward + self.layers * self.layer_backward

    @property
    def total(self) -> float:
        return self.head_forward + self.layers * self.layer_forward + self.backward


def parts_of(run: Run, system: System) -> Parts:
    """Forward and backward of a layer and of the head."""
    tokens, split, cluster = run.micro_batch_tokens, run.tensor_parallel, run.cluster
    products = matmul_s(2 * run.layer_matmuls * tokens / split, tokens, cluster, system, split)
    attention = 2 * run.seq_len * run.hidden * tokens / split
    attention_s = attention / (cluster.peak_tflops * 1e12 * ATTENTION_EFFICIENCY.get(run.flash, 0.55))
    elementwise = memory_s((24 + 24 / split) * run.hidden * tokens, cluster)
    collectives = 2 * _tensor_parallel_s(run, system)
    forward = products + attention_s + elementwise + collectives
    again = {"none": 0.0, "selective": elementwise, "full": forward}.get(run.recompute, 0.0)
    head = matmul_s(2 * run.hidden * run.vocab * tokens / split, tokens, cluster, system, split)
    logits = run.vocab * tokens / split
    return Parts(
        layer_forward=forward,
        layer_backward=2 * products + 2.5 * attention_s + 2 * elementwise + collectives + again,
        head_forward=head + memory_s(10 * logits, cluster),
        head_backward=2 * head + memory_s(8 * logits, cluster),
        layers=run.layers,
    )


def _tensor_parallel_s(run: Run, system: System) -> float:
    if run.tensor_parallel == 1:
        return 0.0
    group = Group(run.tensor_parallel, min(run.tensor_parallel, run.cluster.ranks_per_node))
    num_bytes = 2 * run.hidden * run.micro_batch_tokens
    return ring_s(num_bytes, 2, group, run.cluster, system) + system.tensor_parallel_us * 1e-6


def step_s(run: Run, system: System) -> float:
    """Seconds of a step of the slowest rank."""
    schedule = _host_synchronized if run.system.startswith("InternLM/InternEvo") else _asynchronous
    return schedule(run, parts_of(run, system), system)


def _data_parallel(run: Run, size: int) -> Group:
    """Of data-parallel ranks; those of one node are `tensor_parallel` apart, which share its network cards."""
    per_node = max(min(size, run.cluster.ranks_per_node // run.tensor_parallel), 1)
    return Group(size, per_node, run.cluster.ranks_per_node // per_node if size > per_node else 1)


def _host_synchronized(run: Run, parts: Parts, system: System) -> float:
    """InternEvo of July 2023: after the last micro-batch all data-parallel ranks all-reduce gradients, a bucket at a
    time, the next bucket's backward beside it and nothing further ahead; then each owner broadcasts its tensors.
    """
    waiting, group = system.waiting(run.gpus), _data_parallel(run, run.data_parallel)
    numel = run.params / run.tensor_parallel
    closes = [backward * waiting for backward in _backward_of_buckets(run, parts)]
    sizes = [min(HOST_SYNC_BUCKET, numel - i * HOST_SYNC_BUCKET) for i in range(len(closes))]
    reduces = [ring_s(2 * size, 2, group, run.cluster, system) for size in sizes]
    before_last = run.grad_accum * parts.total * waiting - sum(closes)
    tail = closes[0] + sum(map(max, closes[1:], reduces[:-1])) + reduces[-1]
    accumulate = (run.grad_accum - 1) * memory_s(ACCUMULATE_BYTES * numel, run.cluster)
    owned = max(numel / run.zero_optim, run.vocab * run.hidden / run.tensor_parallel)
    update = memory_s(OPTIMIZER_2023_BYTES * owned, run.cluster) + OPTIMIZER_2023_S
    return before_last + tail + accumulate + update + _broadcasts_s(run, numel, system)


def _backward_of_buckets(run: Run, parts: Parts) -> list[float]:
    """Seconds of backward that fill each bucket; from the head to the embedding, which takes none."""
    table = run.vocab * run.hidden
    pieces = [(table, parts.head_backward)]
    pieces += [((run.params - 2 * table) / run.layers, parts.layer_backward)] * run.layers
    pieces += [(table, 0.0)]
    filled, buckets = 0.0, [0.0]
    for numel, seconds in pieces:
        left = numel / run.tensor_parallel
        rate = seconds / left
        while left > 0:
            if filled >= HOST_SYNC_BUCKET:
                filled, buckets = 0.0, [*buckets, 0.0]
            part = min(left, HOST_SYNC_BUCKET - filled)
            buckets[-1] += part * rate
            filled, left = filled + part, left - part
    return buckets


def _broadcasts_s(run: Run, numel: float, system: System) -> float:
    """One ring broadcast for each owner of whole tensors, one after the other."""
    group = _data_parallel(run, run.zero_optim)
    if group.size == 1:
        return 0.0
    owners = min(group.size, TENSORS_PER_LAYER * run.layers + 3)
    rate = near_rate(run.cluster)
    if group.nodes > 1:
        rate = min(rate, run.cluster.far.gb_per_s * 1e9 * system.net_share(group.nodes) / group.sharing)
    return owners * (group.size - 1) * system.broadcast_hop_us * 1e-6 + 2 * numel / rate


def _asynchronous(run: Run, parts: Parts, system: System) -> float:
    """Collectives of a layer beside another layer's computing: fully sharded, or replicated with reduced gradients.

    Sharded parameters are gathered for forward and backward of each micro-batch and gradients scattered after it; whole
    ones are all-reduced after the last. What is longer, computing or sending, sets the pace of a layer.
    """
    waiting = system.waiting(run.gpus)
    numel = (run.params - run.vocab * run.hidden) / run.layers / run.tensor_parallel
    over = _data_parallel(run, run.zero_param if run.zero_param > 1 else run.data_parallel)
    gather = ring_s(2 * numel, 1, over, run.cluster, system) if run.zero_param > 1 else 0.0
    reduce = ring_s(2 * numel, 1 if run.zero_param > 1 else 2, over, run.cluster, system)
    sends_every_time = run.zero_param > 1
    silent = 0 if sends_every_time else run.grad_accum - 1
    forward = _beside(parts.layer_forward * waiting, gather)
    backward = _beside(parts.layer_backward * waiting, gather + reduce)
    speaking = run.layers * (forward + backward) + gather + reduce
    head = (parts.head_forward + parts.head_backward) * waiting
    owned = run.params / run.tensor_parallel / run.zero_optim
    update = memory_s(FUSED_OPTIMIZER_BYTES * owned, run.cluster)
    return (run.grad_accum - silent) * (speaking + head) + silent * parts.total * waiting + update


def _beside(compute: float, transfer: float) -> float:
    """Seconds of both at once."""
    return max(transfer, compute + CONTENTION * min(compute, transfer))


def tokens_per_gpu_s(run: Run, system: System) -> float:
    """The throughput that the closed form predicts."""
    return run.step_s(step_s(run, system))
