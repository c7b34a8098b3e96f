"""The scheduler: what it promises beyond a right result, which test_checker.py judges."""

import gc
import time
from dataclasses import replace

import pytest

from internevo_engine.plan.levels import levels
from internevo_engine.program import Instruction, Program, ProgramError
from internevo_engine.schedule.costs import MODELLED, CostTable, Rate, Transfer, TransferTime
from internevo_engine.schedule.make_program import check, gather_window, make_header, make_program
from internevo_engine.schedule.report import predict_spans
from tests.schedule.synthetic import decoder_spec, plan_buckets, schedule_graph, tiny_program

LAYER_7B = (4096, 3 * 4096 * 4096, 3 * 4096, 4096 * 4096, 4096, 4096, 2 * 11008 * 4096, 11008 * 4096)
NUMELS_7B = ((103168 * 4096,), *((LAYER_7B,) * 32), (4096, 103168 * 4096))


def program_7b(groups: tuple[int, int, int, int], *, gather_ahead: int | None = 1, micro_batches: int = 4) -> Program:
    return schedule_graph(
        decoder_spec(NUMELS_7B, num_tokens=4096),
        plan_buckets(NUMELS_7B, num_shards=groups[2], target_bytes=64_000_000),
        levels(*groups, ranks_per_host=8),
        world=groups[3],
        micro_batches=micro_batches,
        gather_ahead=gather_ahead,
    )


def first(program: Program, kind: str, what: str | None = None) -> int:
    return next(n for n, each in enumerate(program.instructions) if each.kind == kind and what in (None, each.what))


def named(program: Program, *kinds: str) -> list[Instruction]:
    return [each for each in program.instructions if each.kind in kinds]


def test_equal_inputs_give_the_equal_program() -> None:
    assert tiny_program((2, 2, 4, 4)).text == tiny_program((2, 2, 4, 4)).text


def test_without_overlap_each_instruction_follows_the_one_before() -> None:
    program = tiny_program((2, 2, 4, 4), overlap=False)
    for number, (before, each) in enumerate(zip(program.instructions, program.instructions[1:], strict=False), 1):
        assert each.lane == before.lane or number - 1 in each.after


def test_overlap_changes_when_but_never_what() -> None:
    chain, overlapped = (tiny_program((2, 2, 4, 4), overlap=overlap).instructions for overlap in (False, True))
    assert sorted(str(replace(each, after=())) for each in chain) == sorted(
        str(replace(each, after=())) for each in overlapped
    )


def test_the_first_reduce_starts_before_half_of_the_backward_is_done() -> None:
    program = program_7b((1, 8, 8, 8), micro_batches=1)
    spans = predict_spans(program)
    backward = [span for span, each in zip(spans, program.instructions, strict=True) if each.what.startswith("bwd.")]
    half = (backward[0].start + backward[-1].end) // 2
    assert spans[first(program, "reduce")].start < half


def test_refreshes_run_under_the_forward_in_the_order_of_need() -> None:
    program = program_7b((1, 1, 8, 8), micro_batches=1)
    spans = predict_spans(program)
    refreshed = [each.what for each in named(program, "refresh")]
    updated = [each.what for each in named(program, "update")]
    needed = [f"bucket[{bucket}]" for bucket in dict.fromkeys(b for call in program.calls for b in call.buckets)]
    assert refreshed == updated == needed
    last = max(span.end for span, each in zip(spans, program.instructions, strict=True) if each.kind == "refresh")
    assert spans[first(program, "compute")].start < spans[first(program, "refresh", needed[-1])].start < last
    assert last < spans[first(program, "compute", "loss")].end


def test_near_links_come_before_far_ones() -> None:
    program = tiny_program((1, 2, 4, 4), ranks_per_host=2, micro_batches=1)
    for bucket in range(len(program.buckets)):
        lanes = [each.lane for each in named(program, "reduce") if each.what == f"bucket[{bucket}]"]
        assert lanes == ["near", "far"]


@pytest.mark.parametrize("kind", ["param", "grad"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_what_is_gathered_and_packed_stays_within_the_window(kind: str, micro_batches: int) -> None:
    program = program_7b((8, 8, 8, 8), micro_batches=micro_batches)
    sizes = {buffer.name: buffer.bytes for buffer in program.buffers}
    alive: set[str] = set()
    most = 0
    for each in program.instructions:
        names = {name for name in each.writes if name.startswith(f"{kind}[")}
        alive = alive - names if each.kind == "free" else alive | names
        most = max(most, sum(sizes[name] for name in alive))
    of_kind = [num_bytes for name, num_bytes in sizes.items() if name.startswith(f"{kind}[")]
    assert sum(of_kind) > 2 * program.window_bytes
    assert 0 < most <= max(program.window_bytes, *of_kind)


def test_a_bucket_is_reduced_once_a_micro_batch_only_where_gradients_are_sharded_or_ordered() -> None:
    fast, sharded = (tiny_program(groups, micro_batches=3) for groups in ((1, 1, 4, 4), (1, 4, 4, 4)))
    ordered = tiny_program((1, 1, 4, 4), micro_batches=3, mode="ordered")
    num_buckets = len(fast.buckets)
    counts = [len(named(program, "reduce")) // num_buckets for program in (fast, sharded, ordered)]
    assert counts == [2, 6, 6]  # near and far; all three times


def test_neighbouring_calls_share_one_gather() -> None:
    program = tiny_program((2, 2, 2, 2), micro_batches=1)
    uses = [call.buckets for call in program.calls if call.buckets]
    changes = sum(b not in (uses[n - 1] if n else ()) for n, buckets in enumerate(uses) for b in buckets)
    assert len(named(program, "gather")) == changes < sum(map(len, uses))


def test_the_window_holds_neighbouring_calls() -> None:
    assert gather_window([(0,), (), (1, 2), (2,)], [5, 7, 11], ahead=0) == 18
    assert gather_window([(0,), (), (1, 2), (2,)], [5, 7, 11], ahead=1) == 23


def test_a_window_too_small_for_one_call_is_named() -> None:
    numels = [[16], [16, 20], [24]]
    graph, costs = decoder_spec(numels, 8), MODELLED["cpu"]
    buckets = plan_buckets(numels, num_shards=2, target_bytes=64)
    header = make_header(
        graph,
        buckets,
        levels(2, 2, 2, 2, 2),
        world=2,
        micro_batches=1,
        mode="fast",
        param_bytes=2,
        wire_bytes=4,
        gather_ahead=0,
    )
    with pytest.raises(ProgramError, match=r"window_bytes=40 does not hold the \d+ bytes of parameters that one call"):
        make_program(replace(header, window_bytes=40), graph, costs, overlap=True)


def test_a_header_that_does_not_add_up_is_named() -> None:
    program = tiny_program((1, 1, 2, 2))
    with pytest.raises(ProgramError, match="the levels make up 2 ranks, not world=3"):
        check(replace(program, world=3))


def timed(transfer: Transfer, num_bytes: int, pieces: int, ns: int) -> TransferTime:
    return TransferTime(transfer, "near", 2, num_bytes, pieces, ns)


def test_more_pieces_are_taken_only_where_they_are_clearly_faster() -> None:
    (level,) = levels(1, 1, 2, 2, 2)
    small = [timed("all_gather", 1000, pieces, ns) for pieces, ns in ((1, 100), (4, 95), (16, 300))]
    large = [timed("all_gather", 9000, pieces, ns) for pieces, ns in ((1, 900), (4, 700), (16, 500), (64, 490))]
    costs = replace(MODELLED["cpu"], transfers=(*large, *small))
    assert costs.best_cuts("all_gather", level) == (small[0], large[2])
    assert costs.best_cuts("all_reduce", level) == ()


def test_a_measured_rate_is_never_negative_nor_infinite() -> None:
    (level,) = levels(1, 1, 2, 2, 2)
    noisy = (timed("all_gather", 1000, 1, 500), timed("all_gather", 9000, 1, 400))  # the larger one was faster
    rate = replace(MODELLED["cpu"], transfers=noisy).transfer_rate("all_gather", level)
    assert rate.latency_ns >= 0
    assert rate.ns(10**9) >= 0


def test_measured_rows_win_over_modelled_ones() -> None:
    graph = decoder_spec([[16], [16], [16]], 8)
    (level,) = levels(1, 1, 2, 2, 2)
    modelled = CostTable(1000, Rate(10, 1000), near=Rate(20, 1000), far=Rate(30, 10))
    measured = replace(
        modelled,
        transfers=tuple(timed("reduce_scatter", num_bytes, 1, 7 + num_bytes * 50) for num_bytes in (2000, 20_000)),
    )
    assert modelled.transfer_rate("reduce_scatter", level) == Rate(20, 1000)
    assert measured.transfer_rate("reduce_scatter", level) == Rate(7, 10)  # half of the bytes leave a rank of two
    assert measured.transfer_rate("all_gather", level) == Rate(20, 1000)
    assert modelled.call_ns(graph.calls[0]) == max(
        10 + graph.calls[0].flops, Rate(10, 1000).ns(graph.calls[0].bytes_moved)
    )
    assert CostTable.from_json(measured.json()) == measured


def test_1024_ranks_of_7b_are_scheduled_and_checked_within_a_second() -> None:
    gc.collect()  # else a collection of what earlier tests left may fall into this second, and takes most of it
    start = time.perf_counter()
    program = program_7b((8, 8, 1024, 1024))
    assert time.perf_counter() - start < 1
    assert len(program.instructions) > 5000
