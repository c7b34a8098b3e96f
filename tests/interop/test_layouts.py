"""Every layout is undone by its inverse, and the orders of rows are those that others mean."""

import pytest
import torch

from internevo_engine.interop import layouts
from internevo_engine.interop.layouts import Layout
from internevo_engine.models.families import architecture
from tests.interop.folders import tiny

ARCH = architecture(tiny("internlm2"))
"""4 query and 2 key/value heads of size 8."""
ALL = {name: layout for name, layout in vars(layouts).items() if isinstance(layout, Layout)}


@pytest.mark.parametrize("shape", [(64, 32), (64,)])
@pytest.mark.parametrize("name", ALL)
def test_join_undoes_split(name: str, shape: tuple[int, ...]) -> None:
    ours = torch.arange(64 * 32)[: 64 * (shape[1:] or (1,))[0]].view(shape)
    parts = ALL[name].split(ours, ARCH)
    assert sum(part.numel() for part in parts) == ours.numel()
    assert torch.equal(ALL[name].join(parts, ARCH), ours)


def test_paired_heads_put_each_pair_of_rope_side_by_side() -> None:
    q, k, v = layouts.QKV_PAIRED.split(torch.arange(64), ARCH)
    assert q[:8].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert k[8:].tolist() == [40, 44, 41, 45, 42, 46, 43, 47]
    assert v.tolist() == list(range(48, 64))


def test_grouped_heads_put_queries_before_their_key_and_value() -> None:
    (fused,) = layouts.QKV_GROUPED.split(torch.arange(64), ARCH)
    expected = [*range(16), *range(32, 40), *range(48, 56), *range(16, 32), *range(40, 48), *range(56, 64)]
    assert fused.tolist() == expected
