"""Transfers over gloo: slices go to the right member, sums are those of one tree, whatever the route and nesting."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from internevo_engine.plan.levels import levels
from internevo_engine.program import Level
from internevo_engine.runtime.extension import load_extension
from internevo_engine.runtime.launch import Place
from internevo_engine.runtime.transfers import ANY_BYTES, Route, Transfers, routes
from tests.ranks import run_ranks

ORDERED = routes("gloo", "ordered", torch.float32)
NUMEL = 96  # divides by 2, 3 and 4; its slices also by several numbers of pieces


def gradient(rank: int, numel: int = NUMEL) -> Tensor:
    """Numbers of very different size, so that every order of addition has bits of its own."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(numel, generator=generator) * 10 ** torch.randint(-4, 4, (numel,), generator=generator)


def tree_sum(rows: Sequence[Tensor]) -> Tensor:
    """((0 + 1) + (2 + 3)) + ..., the slow road."""
    sums = list(rows)
    while len(sums) > 1:
        pairs = [sums[i : i + 2] for i in range(0, len(sums), 2)]
        sums = [pair[0] + pair[1] if len(pair) == 2 else pair[0] for pair in pairs]
    return sums[0]


def slice_of(flat: Tensor, rank: int, world: int) -> Tensor:
    return flat.view(world, -1)[rank]


def world_name() -> str:
    assert dist.group.WORLD is not None
    return dist.group.WORLD.group_name


def every_transfer(place: Place, table: tuple[Route, ...], wire: torch.dtype, numel: int) -> dict[str, Tensor]:
    load_extension()
    transfers = Transfers(world_name(), table, wire)
    own = gradient(place.rank, numel)
    scattered, reduced = torch.empty(numel // place.world), torch.empty(numel - 1)
    transfers.reduce_scatter(scattered, own)
    transfers.all_reduce(reduced, own[:-1].clone())
    gathered, in_place = torch.empty(numel * place.world), torch.zeros(numel * place.world)
    transfers.all_gather(gathered, own)
    slice_of(in_place, place.rank, place.world).copy_(own)
    transfers.all_gather(in_place, slice_of(in_place, place.rank, place.world))
    return {"scattered": scattered, "reduced": reduced, "gathered": gathered, "in_place": in_place, "own": own}


@pytest.mark.parametrize(
    ("world", "wire", "pieces"),
    [
        (2, torch.float32, 1),
        (3, torch.float32, 4),
        (4, torch.float32, 1),
        (4, torch.float32, 8),
        (4, torch.bfloat16, 2),
    ],
)
def test_ordered_transfers_add_in_one_tree_for_every_number_of_pieces(
    tmp_path: Path, world: int, wire: torch.dtype, pieces: int
) -> None:
    table = routes("gloo", "ordered", wire, pieces)
    results = run_ranks(every_transfer, world, tmp_path, table, wire, NUMEL)
    expected = tree_sum([gradient(rank).to(wire).float() for rank in range(world)])
    everything = torch.cat([gradient(rank) for rank in range(world)])
    for rank, result in enumerate(results):
        assert torch.equal(result["scattered"], slice_of(expected, rank, world))
        assert torch.equal(result["reduced"], expected[:-1].to(wire).float())
        assert torch.equal(result["gathered"], everything)
        assert torch.equal(result["in_place"], everything)
        assert torch.equal(result["own"], gradient(rank)), "the input was written"


def test_the_backends_own_sums_are_sums(tmp_path: Path) -> None:
    table = tuple(
        Route("gloo", kind, ANY_BYTES, "backend", 1) for kind in ("reduce_scatter", "all_reduce", "all_gather")
    )
    results = run_ranks(every_transfer, 2, tmp_path, table, torch.float32, NUMEL)
    expected = gradient(0) + gradient(1)
    for rank, result in enumerate(results):
        torch.testing.assert_close(result["scattered"], slice_of(expected, rank, 2))
        torch.testing.assert_close(result["reduced"], expected[:-1])


def nested_reduction(place: Place, cuts: list[tuple[Level, ...]]) -> list[Tensor]:
    load_extension()
    results = []
    for cut in cuts:
        flat = gradient(place.rank)
        for level in cut:
            group, _ = dist.new_subgroups_by_enumeration([list(ranks) for ranks in level.groups(place.world)])
            out = torch.empty(flat.numel() // level.size)
            Transfers(group.group_name, ORDERED).reduce_scatter(out, flat)
            flat = out
        results.append(flat)
    return results


def test_nested_reductions_have_the_bits_of_one(tmp_path: Path) -> None:
    """Three ways to cut 4 ranks; ranks own other slices in each, so slices are put side by side by owner."""
    cuts = [levels(4, 4, 4, 4, 4), levels(2, 2, 4, 4, 4), levels(1, 2, 4, 4, 2)]
    results = run_ranks(nested_reduction, 4, tmp_path, cuts)
    expected = tree_sum([gradient(rank) for rank in range(4)])
    for number, cut in enumerate(cuts):
        for rank, result in enumerate(results):
            offset, length = 0, NUMEL
            for level in cut:
                length //= level.size
                offset += level.digit(rank) * length
            assert torch.equal(result[number], expected[offset : offset + length]), (cut, rank)


def messages_of_mistakes(place: Place) -> list[str]:
    load_extension()
    fast, all_gather = routes("gloo", "fast", torch.float32), Route("gloo", "all_gather", 100, "backend", 1)
    attempts = [
        lambda: Transfers(world_name(), fast, torch.bfloat16),
        lambda: Transfers(world_name(), (all_gather,)).all_gather(torch.empty(50), torch.empty(25)),
        lambda: Transfers("nobody", fast),
    ]
    messages = []
    for attempt in attempts:
        with pytest.raises(RuntimeError) as caught:
            attempt()
        messages.append(str(caught.value))
    return messages


def test_mistakes_are_named(tmp_path: Path) -> None:
    wire, route, group = run_ranks(messages_of_mistakes, 2, tmp_path)[0]
    assert "'ordered' for a wire of BFloat16" in wire
    assert "no route for all_gather of 200 bytes; add a row" in route
    assert "nobody" in group


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_what_must_keep_an_order_or_fp32_never_leaves_a_sum_to_the_backend(backend: str) -> None:
    for table in (routes(backend, "ordered", torch.float32), routes(backend, "fast", torch.bfloat16)):
        algorithms = {route.transfer: route.algorithm for route in table}
        assert algorithms == {"reduce_scatter": "ordered", "all_reduce": "ordered", "all_gather": "backend"}


def test_nccl_reduces_by_itself_where_it_may() -> None:
    algorithms = {route.transfer: route.algorithm for route in routes("nccl", "fast", torch.float32)}
    assert algorithms["reduce_scatter"] == algorithms["all_reduce"] == "backend"
