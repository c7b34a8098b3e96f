"""make_buckets as Python sees it; csrc/tests/test_bucketing.cpp tests the algorithm."""

import pytest

from internevo_engine._core import Param, make_buckets


def test_buckets_come_last_layer_first_with_decayed_parameters_in_front() -> None:
    params = [Param(20, 0, True), Param(4, 1, False), Param(numel=9, layer=1, decayed=True)]
    assert [repr(bucket) for bucket in make_buckets(params, target_bytes=128, num_shards=2)] == [
        "Bucket(params=[2, 1], offsets=[0, 16], numel=32, decayed_numel=16)",
        "Bucket(params=[0], offsets=[0], numel=32, decayed_numel=32)",
    ]


def test_buckets_are_read_only() -> None:
    (bucket,) = make_buckets([Param(20, 0, True)], 128, 1)
    with pytest.raises(AttributeError):
        bucket.numel = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("params", "target_bytes", "num_shards", "message"),
    [
        ([], 0, 1, "target_bytes=0 must be positive"),
        ([], 1, 0, "num_shards=0 must be positive"),
        ([Param(0, 0, True)], 1, 1, "parameter 0 has numel=0; it must be positive"),
        (
            [Param(1, 3, True), Param(1, 2, True)],
            1,
            1,
            "parameter 1 of layer 2 comes after one of layer 3; give parameters in forward order",
        ),
    ],
)
def test_impossible_sizes_are_named(params: list[Param], target_bytes: int, num_shards: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        make_buckets(params, target_bytes, num_shards)
