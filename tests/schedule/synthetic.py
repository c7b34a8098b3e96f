"""Steps to schedule without capturing anything: a decoder of embedding, layers and head, as a GraphSpec."""

from collections.abc import Sequence, Set
from itertools import pairwise

from internevo_engine._core import Bucket, Param, make_buckets
from internevo_engine.plan.levels import levels
from internevo_engine.program import Level, Mode, Program
from internevo_engine.schedule.costs import MODELLED, CostTable
from internevo_engine.schedule.graph_spec import CallSpec, GraphSpec, Phase, ValueSpec
from internevo_engine.schedule.make_program import make_header, make_program


def decoder_spec(numels: Sequence[Sequence[int]], num_tokens: int) -> GraphSpec:
    """A micro-batch of a decoder whose layer i has parameters of `numels[i]` elements; 0 embeds, the last is the head.

    Backward saves one value a layer, and the head's forward and loss are one call, as capture will have it.
    """
    firsts = [sum(map(len, numels[:layer])) for layer in range(len(numels) + 1)]
    params = [tuple(range(first, last)) for first, last in pairwise(firsts)]
    last, size = len(numels) - 1, 16 * num_tokens

    def call(name: str, phase: Phase, layer: int, reads: str, writes: str, grads: dict[str, int]) -> CallSpec:
        flops = (4 if phase == "bwd" else 2) * sum(numels[layer]) * num_tokens
        moved = 2 * sum(numels[layer]) + 4 * size
        return CallSpec(
            name, phase, flops, moved, tuple(reads.split()), (*writes.split(), *grads), params[layer], grads
        )

    forward = [call("fwd.embed", "fwd", 0, "tokens", "h0", {})]
    forward += [call(f"fwd.layer{i}", "fwd", i, f"h{i - 1}", f"h{i} saved{i}", {}) for i in range(1, last)]
    loss = call("loss", "loss", last, f"h{last - 1} tokens", "loss_sum loss_count saved_head", {})
    backward = [call("bwd.head", "bwd", last, "saved_head", f"dh{last - 1}", {f"g{p}": p for p in params[last]})]
    backward += [
        call(f"bwd.layer{i}", "bwd", i, f"dh{i} saved{i}", f"dh{i - 1}", {f"g{p}": p for p in params[i]})
        for i in range(last - 1, 0, -1)
    ]
    backward += [call("bwd.embed", "bwd", 0, "dh0 tokens", "", {f"g{p}": p for p in params[0]})]
    calls = (*forward, loss, *backward)
    written = dict.fromkeys(name for each in calls for name in each.writes)
    values = (ValueSpec("tokens", 8 * num_tokens), *(ValueSpec(name, size) for name in written))
    return GraphSpec(calls, values, ("loss_sum", "loss_count"))


def plan_buckets(
    numels: Sequence[Sequence[int]], num_shards: int, target_bytes: int, frozen: Set[int] = frozenset()
) -> list[Bucket]:
    sizes = [(numel, layer) for layer, in_layer in enumerate(numels) for numel in in_layer]
    params = [Param(*size, True, index not in frozen) for index, size in enumerate(sizes)]
    return make_buckets(params, target_bytes, num_shards)


def tiny_program(
    groups: tuple[int, int, int, int],
    *,
    ranks_per_host: int = 2,
    micro_batches: int = 2,
    mode: Mode = "fast",
    overlap: bool = True,
    layers: int = 2,
    gather_ahead: int | None = 1,
    wire_bytes: int = 4,
) -> Program:
    """A Program for p, g, os, W, in which a layer is two parameters and one bucket; the graph it comes from."""
    numels = [[16], *[[16, 20]] * layers, [24]]
    graph = decoder_spec(numels, num_tokens=64)
    buckets = plan_buckets(numels, num_shards=groups[2], target_bytes=4 * 64)
    return schedule_graph(
        graph,
        buckets,
        levels(*groups, ranks_per_host),
        world=groups[3],
        micro_batches=micro_batches,
        mode=mode,
        overlap=overlap,
        gather_ahead=gather_ahead,
        wire_bytes=wire_bytes,
    )


def schedule_graph(
    graph: GraphSpec,
    buckets: Sequence[Bucket],
    plan_levels: Sequence[Level],
    *,
    world: int,
    micro_batches: int,
    mode: Mode = "fast",
    overlap: bool = True,
    gather_ahead: int | None = 1,
    wire_bytes: int = 4,
    costs: CostTable = MODELLED["h100"],
) -> Program:
    header = make_header(
        graph,
        buckets,
        plan_levels,
        world=world,
        micro_batches=micro_batches,
        mode=mode,
        param_bytes=2,
        wire_bytes=wire_bytes,
        gather_ahead=gather_ahead,
    )
    return make_program(header, graph, costs, overlap=overlap)
