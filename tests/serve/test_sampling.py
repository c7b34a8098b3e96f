"""The filters are those of transformers; the draws follow the probabilities that are left."""

from math import inf, nan

import pytest
import torch
from transformers.generation import logits_process as theirs

from internevo_engine.errors import UsageError
from internevo_engine.serve.sampling import Sampling, choose, filtered

LOGITS = torch.randn(200, generator=torch.Generator().manual_seed(4)) * 3
SEEN = [3, 17, 17, 120]


@pytest.mark.parametrize(
    ("sampling", "warpers"),
    [
        (Sampling(temperature=0.6), [theirs.TemperatureLogitsWarper(0.6)]),
        (Sampling(temperature=1.0, top_k=7), [theirs.TopKLogitsWarper(7)]),
        (Sampling(temperature=1.0, top_p=0.8), [theirs.TopPLogitsWarper(0.8)]),
        (Sampling(temperature=1.0, top_p=1e-6), [theirs.TopPLogitsWarper(1e-6)]),
        (
            Sampling(temperature=1.7, top_k=30, top_p=0.6),
            [theirs.TemperatureLogitsWarper(1.7), theirs.TopKLogitsWarper(30), theirs.TopPLogitsWarper(0.6)],
        ),
    ],
)
def test_filters_are_those_of_transformers(sampling: Sampling, warpers: list) -> None:
    expected = LOGITS[None]
    for warper in warpers:
        expected = warper(None, expected)
    torch.testing.assert_close(filtered(LOGITS, sampling), expected[0])


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    penalize = theirs.RepetitionPenaltyLogitsProcessor(5.0)
    for shift in (0.0, -20.0, 20.0):
        expected = int(penalize(torch.tensor([SEEN]), LOGITS[None] + shift).argmax())
        chosen = choose(LOGITS + shift, SEEN, Sampling(repetition_penalty=5.0), torch.Generator())
        assert chosen == expected
    best = int(LOGITS.argmax())
    assert choose(LOGITS, [best], Sampling(repetition_penalty=50.0), torch.Generator()) != best


def test_draws_follow_the_probabilities() -> None:
    sampling = Sampling(temperature=1.0, top_k=4, seed=9)
    generator = sampling.generator()
    draws = torch.tensor([choose(LOGITS, (), sampling, generator) for _ in range(4000)])
    expected = filtered(LOGITS, sampling).softmax(0)
    found = torch.bincount(draws, minlength=len(LOGITS)) / len(draws)
    assert (found > 0).sum() == 4
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)


def test_temperature_0_is_the_likeliest_token() -> None:
    assert choose(LOGITS, (), Sampling(top_k=3, top_p=0.1), torch.Generator()) == int(LOGITS.argmax())


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1}, {"temperature": nan}, {"temperature": inf}, {"top_p": 0.0}, {"top_p": 1.1},
        {"top_k": -1}, {"repetition_penalty": 0.0}, {"repetition_penalty": inf}, {"seed": -1}, {"seed": 2**63},
    ],
)  # fmt: skip
def test_a_setting_out_of_range_is_named(values: dict) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(values))}="):
        Sampling(**values)
