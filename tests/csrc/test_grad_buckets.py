"""GradBuckets: accumulation with one rank; with two ranks over gloo, sums, the order of the buckets, and overlap."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from internevo_engine.runtime.extension import GradBuckets, load_extension

load_extension()

# Bucket 0 holds parameters 2 and 1, bucket 1 holds parameter 0; every place ends in a gap.
SHAPES = [(2, 5), (3,), (4, 4)]
BUCKET, OFFSET = [1, 0, 0], [0, 16, 0]


def make(group_name: str = "", *, overlap: bool = True) -> tuple[list[Tensor], GradBuckets]:
    flats = [torch.zeros(32), torch.zeros(16)]
    numels = [torch.Size(shape).numel() for shape in SHAPES]
    places = {"bucket_of_param": BUCKET, "offset_of_param": OFFSET, "numel_of_param": numels}
    return flats, GradBuckets(flats, **places, group_name=group_name, overlap=overlap)


def grads(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def flat_of(values: list[Tensor]) -> list[Tensor]:
    """The buckets that hold these gradients, by the slow road."""
    flats = [torch.zeros(32), torch.zeros(16)]
    for bucket, offset, value in zip(BUCKET, OFFSET, values, strict=True):
        flats[bucket][offset : offset + value.numel()] = value.flatten()
    return flats


def assert_equal(flats: list[Tensor], expected: list[Tensor]) -> None:
    for flat, other in zip(flats, expected, strict=True):
        assert torch.equal(flat, other), f"{flat}\n{other}"


def micro_batch(buckets: GradBuckets, values: list[Tensor], *, last: bool) -> None:
    buckets.begin(last=last)
    for param in reversed(range(len(values))):
        buckets.add(param, values[param])


def test_micro_batches_are_added_and_the_next_step_starts_anew() -> None:
    flats, buckets = make()
    for step in range(2):
        a, b, c = grads(3 * step), grads(3 * step + 1), grads(3 * step + 2)
        micro_batch(buckets, a, last=False)
        micro_batch(buckets, b, last=False)
        micro_batch(buckets, c, last=True)
        buckets.finish()
        assert_equal(flats, flat_of([x + y + z for x, y, z in zip(a, b, c, strict=True)]))


def test_bf16_and_strided_gradients_are_summed_in_fp32() -> None:
    flats, buckets = make()
    values = grads(0)
    narrow, strided = values[0].bfloat16(), values[0].t().contiguous().t()
    for grad, last in ((narrow, False), (strided, True)):
        micro_batch(buckets, [grad, *values[1:]], last=last)
    buckets.finish()
    assert_equal(flats, flat_of([narrow.float() + values[0], 2 * values[1], 2 * values[2]]))


def test_a_parameter_without_gradients_is_zero_filled() -> None:
    flats, buckets = make()
    micro_batch(buckets, grads(0), last=True)
    buckets.finish()
    a, b = grads(1), grads(2)
    buckets.begin(last=False)
    buckets.add(2, a[2])
    buckets.begin(last=True)
    buckets.add(0, b[0])
    buckets.finish()
    assert_equal(flats, flat_of([b[0], torch.zeros(SHAPES[1]), a[2]]))


def call_add_before_begin(buckets: GradBuckets) -> None:
    buckets.add(0, torch.zeros(10))


def call_add_twice(buckets: GradBuckets) -> None:
    buckets.begin(last=True)
    buckets.add(0, torch.zeros(10))
    buckets.add(0, torch.zeros(10))


def call_begin_after_last(buckets: GradBuckets) -> None:
    buckets.begin(last=True)
    buckets.begin(last=True)


def call_finish_too_early(buckets: GradBuckets) -> None:
    buckets.begin(last=False)
    buckets.finish()


def add_to_param(param: int, grad: Tensor) -> Callable[[GradBuckets], None]:
    def call(buckets: GradBuckets) -> None:
        buckets.begin(last=True)
        buckets.add(param, grad)

    return call


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (call_add_before_begin, "add() before begin()"),
        (call_add_twice, "parameter 0 was added twice in one micro-batch"),
        (call_begin_after_last, "begin() after the last micro-batch of a step; call finish() first"),
        (call_finish_too_early, "finish() before the last micro-batch; call begin(last=true) first"),
        (add_to_param(3, torch.zeros(1)), "unknown parameter 3; there are 3"),
        (add_to_param(1, torch.zeros(4)), "the gradient of parameter 1 has 4 elements, the parameter has 3"),
        (add_to_param(1, torch.zeros(3).double()), "parameter 1 must be float32 or bfloat16, not Double"),
    ],
)
def test_mistakes_are_named(call: Callable[[GradBuckets], None], message: str) -> None:
    _, buckets = make()
    with pytest.raises(RuntimeError) as caught:
        call(buckets)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("flat", "bucket", "offset", "message"),
    [
        (torch.zeros(8), 0, 6, "parameter 0 with offset=6 and numel=3 does not fit its bucket of 8 elements"),
        (torch.zeros(8), 1, 0, "parameter 0 is in bucket 1 of 1"),
        (torch.zeros(8).bfloat16(), 0, 0, "bucket 0 must be a contiguous float32 vector, not BFloat16 of shape [8]"),
    ],
)
def test_places_that_can_not_be_are_named(flat: Tensor, bucket: int, offset: int, message: str) -> None:
    places = {"bucket_of_param": [bucket], "offset_of_param": [offset], "numel_of_param": [3]}
    with pytest.raises(RuntimeError) as caught:
        GradBuckets([flat], **places, group_name="", overlap=True)
    assert message in str(caught.value)


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


def check_sums(rank: int, group_name: str, *, overlap: bool) -> None:
    """Two steps of two micro-batches; rank 1 never has a gradient of parameter 1 and adds in the opposite order."""
    flats, buckets = make(group_name, overlap=overlap)
    for step in range(2):
        expected = [torch.zeros(shape) for shape in SHAPES]
        for micro in range(2):
            for other in range(2):
                for param, grad in enumerate(grads(100 * step + 10 * micro + other)):
                    expected[param] += grad if (other, param) != (1, 1) else 0
            mine = grads(100 * step + 10 * micro + rank)
            buckets.begin(last=micro == 1)
            for param in (2, 1, 0) if rank == 0 else (0, 2):
                buckets.add(param, mine[param])
        buckets.finish()
        for flat, other in zip(flats, flat_of(expected), strict=True):
            torch.testing.assert_close(flat, other, rtol=1e-6, atol=1e-6)


def check_moments(rank: int, group_name: str, *, overlap: bool) -> None:
    """With overlap bucket 0 is summed before finish(), and never bucket 1 before it; without overlap nothing is."""
    flats, buckets = make(group_name, overlap=overlap)
    ones = [torch.ones(shape) for shape in SHAPES]
    buckets.begin(last=True)
    buckets.add(0, ones[0])  # bucket 1 is complete, but it is not its turn
    time.sleep(0.2)
    assert torch.equal(flats[1][:10], torch.ones(10))
    buckets.add(2, ones[2])
    buckets.add(1, ones[1])
    if overlap:
        assert wait_until(lambda: flats[0][0].item() == 2 and flats[1][0].item() == 2)
    else:
        time.sleep(0.2)
        assert_equal(flats, flat_of(ones))
    dist.barrier()
    buckets.finish()
    assert_equal(flats, flat_of([2 * one for one in ones]))


def two_ranks(rank: int, store: str, overlap: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        group_name = dist.group.WORLD.group_name  # pyright: ignore[reportOptionalMemberAccess]
        check_sums(rank, group_name, overlap=overlap)
        check_moments(rank, group_name, overlap=overlap)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("overlap", [True, False])
def test_two_ranks_have_the_sum_and_bucket_order_is_kept(tmp_path: Path, overlap: bool) -> None:
    spawn(two_ranks, args=(str(tmp_path / "store"), overlap), nprocs=2)
