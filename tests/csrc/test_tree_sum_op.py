"""internevo::tree_sum_: rows added in one binary tree over their number, on host and device."""

import pytest
import torch
from torch import Tensor

from internevo_engine.runtime.extension import COMPOSED, load_extension

load_extension()
OPS = torch.ops.internevo
NUMS_ROWS = (1, 2, 3, 7, 8, 9, 64, 65, 200)


def rows(num_rows: int, numel: int, dtype: torch.dtype) -> Tensor:
    """Numbers of very different size, so that every order of addition has bits of its own."""
    generator = torch.Generator().manual_seed(num_rows)
    values = torch.randn(num_rows, numel, generator=generator)
    return (values * 10.0 ** torch.randint(-4, 5, values.shape, generator=generator)).to(dtype)


def tree(values: list[float]) -> float:
    """By recursion: the left half of a tree is the largest power of two below the number of rows."""
    if len(values) == 1:
        return values[0]
    left = 1 << (len(values) - 1).bit_length() - 1
    return (torch.tensor(tree(values[:left])) + torch.tensor(tree(values[left:]))).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", NUMS_ROWS)
def test_rows_are_added_in_one_tree(num_rows: int, dtype: torch.dtype) -> None:
    given, found, composed = rows(num_rows, 5, dtype), torch.empty(5), torch.empty(5)
    OPS.tree_sum_(found, given)
    COMPOSED["tree_sum_"](composed, given)
    assert found.tolist() == [tree(column) for column in given.float().T.tolist()]
    assert torch.equal(found, composed)


@pytest.mark.parametrize(
    ("out", "given", "message"),
    [
        (torch.zeros(2), torch.zeros(3, 2).double(), "rows must be float32 or bfloat16, not Double"),
        (torch.zeros(2), torch.zeros(2, 3).T, "rows must be contiguous"),
        (torch.zeros(2), torch.zeros(0, 2), "rows must be [num_rows, numel], at least one"),
        (torch.zeros(2), torch.zeros(3, 4), "a row has 4 elements, but out has 2"),
        (torch.zeros(2).double(), torch.zeros(3, 2), "out must be float32, not Double"),
    ],
)
def test_wrong_arguments_are_named(out: Tensor, given: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        OPS.tree_sum_(out, given)
    assert message in str(caught.value)


def test_torch_accepts_the_op() -> None:
    torch.library.opcheck(OPS.tree_sum_.default, (torch.zeros(4), rows(3, 4, torch.float32)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("numel", [0, 1, 16, 5_000_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", NUMS_ROWS)
def test_cuda_gives_the_bits_of_the_cpu(num_rows: int, dtype: torch.dtype, numel: int) -> None:
    given, on_host = rows(num_rows, numel, dtype), torch.empty(numel)
    on_device = torch.empty(numel, device="cuda")
    OPS.tree_sum_(on_host, given)
    OPS.tree_sum_(on_device, given.cuda())
    assert torch.equal(on_device.cpu(), on_host)
