"""The checksum op, beside its composition in torch: any dtype, rows, cuts, and what it refuses."""

import pytest
import torch

from internevo_engine.runtime.extension import checksums, composed_checksums, load_extension

load_extension()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize(("numel", "rows"), [(16, 1), (48, 3), (99_984, 1), (400_000, 4)])
def test_it_is_the_sum_of_unsigned_words_row_by_row(dtype: torch.dtype, numel: int, rows: int) -> None:
    x = (
        torch.randint(-(1 << 31), 1 << 31, (numel * dtype.itemsize // 4,), dtype=torch.int64)
        .to(torch.int32)
        .view(dtype)
    )
    found = checksums(x, rows)
    assert torch.equal(found, composed_checksums(x, rows))
    assert found.sum() == checksums(x)[0]


def test_slices_add_up_to_the_whole() -> None:
    x = torch.randn(3000)
    assert checksums(x[:1000])[0] + checksums(x[1000:])[0] == checksums(x)[0]


def test_every_bit_of_every_kind_of_word_shows() -> None:
    for word in (0, 1, -1, 1 << 30, -(1 << 31)):
        x = torch.full((64,), word, dtype=torch.int32)
        before = checksums(x)[0]
        for bit in range(32):
            x[bit] ^= torch.tensor(1 << bit).to(torch.int32) if bit < 31 else -(1 << 31)
            assert checksums(x)[0] != before
            x[bit] ^= torch.tensor(1 << bit).to(torch.int32) if bit < 31 else -(1 << 31)


@pytest.mark.parametrize(
    ("x", "rows", "says"),
    [
        (torch.zeros(5, dtype=torch.bfloat16), 1, "10 bytes"),
        (torch.zeros(8), 3, "not 3 rows of whole words"),
        (torch.zeros(8), 0, "not 0 rows"),
        (torch.zeros(4, 4).t(), 1, "contiguous"),
    ],
)
def test_what_is_not_whole_words_is_refused(x: torch.Tensor, rows: int, says: str) -> None:
    with pytest.raises(RuntimeError, match=says):
        checksums(x, rows)
