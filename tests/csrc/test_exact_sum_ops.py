"""internevo::exact_*: sums of doubles and of squares with bits that depend on nothing but what was added."""

from math import fsum, isnan

import pytest
import torch
from torch import Tensor

from internevo_engine.runtime.extension import COMPOSED, WORDS_PER_SUM, composed_exact_values_, load_extension

load_extension()
OPS = torch.ops.internevo


def sums(rows: int, device: str = "cpu") -> Tensor:
    return torch.zeros(rows, WORDS_PER_SUM, dtype=torch.int64, device=device)


def numbers(seed: int, numel: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(numel, generator=generator) * 10.0 ** torch.randint(-12, 13, (numel,), generator=generator)


def block_squares(x: Tensor) -> list[float]:
    """Sums of 16 squares in a row, in double, from left to right."""
    total = [0.0] * -(-len(x) // 16)
    for index, value in enumerate(x.tolist()):
        total[index // 16] += value * value
    return total


def totals_on(device: str, x: Tensor) -> Tensor:
    """One row of values, one of squares, one with a value that is no number."""
    words = sums(3, device)
    x = x.to(device)
    OPS.exact_add_(words[0], x.double())
    OPS.exact_add_squares_(words[1], x)
    OPS.exact_add_(words[2], torch.tensor([1.0, torch.inf], dtype=torch.float64, device=device))
    return OPS.exact_values_(words).cpu()


@pytest.mark.parametrize("numel", [0, 1, 16, 1000, 100_003])
def test_sums_are_rounded_once(numel: int) -> None:
    x = numbers(numel, numel)
    values, squares, broken = totals_on("cpu", x).tolist()
    assert values == fsum(x.double().tolist())
    assert squares == fsum(block_squares(x))
    assert isnan(broken)


def test_words_of_ranks_add_up_to_the_sum_of_all() -> None:
    x, whole, parts = numbers(1, 4096).double(), sums(1), sums(4)
    OPS.exact_add_(whole[0], x)
    for row, part in zip(parts, x.chunk(4), strict=True):
        OPS.exact_add_(row, part)
    assert OPS.exact_values_(parts.sum(0)).item() == OPS.exact_values_(whole).item()


def test_what_a_build_without_nvcc_runs_on_cuda_gives_the_same_bits() -> None:
    x, found, expected = numbers(2, 1000), sums(2), sums(2)
    for words, ops in ((found, COMPOSED), (expected, {name: getattr(OPS, name) for name in COMPOSED})):
        ops["exact_add_"](words[0], x.double())
        ops["exact_add_squares_"](words[1], x)
    assert torch.equal(found, expected)
    assert torch.equal(composed_exact_values_(found), OPS.exact_values_(expected))


@pytest.mark.parametrize(
    ("op", "arguments", "message"),
    [
        ("exact_add_", (sums(1)[:, 1:].clone(), torch.zeros(1).double()), "words has 67 elements; a sum has 68"),
        ("exact_add_", (sums(2), torch.zeros(1).double()), "words are 2 sums, but one is added to"),
        ("exact_add_", (sums(1), torch.zeros(1)), "values must be float64, not Float"),
        ("exact_add_squares_", (sums(1), torch.zeros(1).double()), "x must be float32, not Double"),
        ("exact_values_", (sums(1).int(),), "words must be int64, not Int"),
    ],
)
def test_wrong_arguments_are_named(op: str, arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        getattr(OPS, op)(*arguments)
    assert message in str(caught.value)


def test_torch_accepts_the_ops() -> None:
    x = numbers(3, 100)
    torch.library.opcheck(OPS.exact_add_.default, (sums(1)[0], x.double()))
    torch.library.opcheck(OPS.exact_add_squares_.default, (sums(1)[0], x))
    torch.library.opcheck(OPS.exact_values_.default, (sums(2),))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("numel", [0, 1, 16, 1000, 5_000_003])
def test_cuda_gives_the_bits_of_the_cpu(numel: int) -> None:
    x = numbers(numel, numel)
    torch.testing.assert_close(totals_on("cuda", x), totals_on("cpu", x), rtol=0, atol=0, equal_nan=True)
