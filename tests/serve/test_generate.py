"""What is written token by token is what the decoder computes, and what transformers writes."""

from pathlib import Path

import pytest
import torch
import transformers

from internevo_engine.errors import UsageError
from internevo_engine.interop.export_hf import export
from internevo_engine.serve.decode import Cache, extend
from internevo_engine.serve.generate import Request, complete, generate
from internevo_engine.serve.load import load_model
from internevo_engine.serve.sampling import Sampling
from tests.interop.folders import VOCAB, decoder_of, logits, tiny
from tests.serve.models import MAX_LEN, speaker, write_speaker

PROMPTS = [[1, 300, 5, 77], [1, 9], [1, *range(40, 61)]]
WARM = Sampling(temperature=1.0, seed=3)


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("internlm", {"kv_heads": 4}),
        ("internlm2", {"norm_head": True}),
        ("internlm3", {"kv_heads": 1}),
        ("llama", {"tie_embeddings": True}),
    ],
)
def test_greedy_answers_are_those_of_transformers(tmp_path: Path, family: str, keys: dict) -> None:
    folder = write_speaker(tmp_path / "engine", family, **keys)
    export(folder, tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    ours = load_model(folder, "cpu")
    answers = complete(ours, [Request(prompt, max_tokens=24) for prompt in PROMPTS])
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        found = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=24, do_sample=False,
            eos_token_id=sorted(ours.stop_ids), pad_token_id=2,
        )  # fmt: skip
        assert list(answer.tokens) == found[0, len(prompt) :].tolist()
    assert len({answer.tokens for answer in answers}) == len(PROMPTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_gives_the_logits_of_the_whole_sequence(dtype: torch.dtype) -> None:
    decoder = decoder_of(tiny("internlm2"), dtype)
    rows = [torch.randint(VOCAB, (n,), generator=torch.Generator().manual_seed(n)) for n in (20, 3, 11)]
    cache = Cache(decoder, len(rows), 24)
    first = torch.nn.utils.rnn.pad_sequence([row[:-2] for row in rows], batch_first=True)
    found = [extend(decoder, cache, first, torch.tensor([len(row) - 2 for row in rows]))]
    for place in (-2, -1):
        step = torch.stack([row[place] for row in rows])[:, None]
        found.append(extend(decoder, cache, step, torch.ones(len(rows), dtype=torch.int64)))
    for number, row in enumerate(rows):
        whole = logits(decoder, row)[-3:]
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        torch.testing.assert_close(torch.stack([step[number] for step in found]), whole, atol=tolerance, rtol=tolerance)


def test_an_answer_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    model = speaker(tmp_path)
    requests = [Request(prompt, WARM, max_tokens) for prompt, max_tokens in zip(PROMPTS, (30, 4, 12), strict=True)]
    together = complete(model, requests)
    assert together == [complete(model, [request])[0] for request in requests]
    assert [len(answer.tokens) for answer in together] == [30, 4, 12]


def test_a_seed_repeats_an_answer_and_another_one_gives_another(tmp_path: Path) -> None:
    model = speaker(tmp_path)
    first, again, other = (
        complete(model, [Request(PROMPTS[0], Sampling(temperature=1.0, seed=seed), 20)])[0] for seed in (1, 1, 2)
    )
    assert first == again
    assert first.tokens != other.tokens


def test_chunks_make_the_answer_and_the_last_one_says_why_it_ends(tmp_path: Path) -> None:
    model = speaker(tmp_path)
    request = Request(PROMPTS[0], WARM, 25)
    chunks = list(generate(model, [request]))
    assert [chunk.finish for chunk in chunks] == [None] * 24 + ["length"]
    assert "".join(chunk.text for chunk in chunks) == complete(model, [request])[0].text
    assert "".join(chunk.text for chunk in chunks) == model.vocabulary.decode([chunk.token for chunk in chunks])


def test_a_stop_token_ends_an_answer_and_has_no_text(tmp_path: Path) -> None:
    model = speaker(tmp_path)
    tokens = complete(model, [Request(PROMPTS[0], WARM, 20)])[0].tokens
    stops = type(model)(**{**vars(model), "stop_ids": frozenset({tokens[6]})})
    answer = complete(stops, [Request(PROMPTS[0], WARM, 20)])[0]
    end = tokens.index(tokens[6])
    assert answer.tokens == tokens[: end + 1]
    assert answer.finish == "stop"
    assert answer.text == model.vocabulary.decode(tokens[:end]).rstrip("\ufffd")


def test_a_stop_string_ends_an_answer_before_it(tmp_path: Path) -> None:
    model = speaker(tmp_path)
    whole = complete(model, [Request(PROMPTS[0], WARM, 40)])[0]
    stop = whole.text[10:14]
    answer = complete(model, [Request(PROMPTS[0], WARM, 40, stop=(stop, "never there"))])[0]
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert answer.finish == "stop"
    assert len(answer.tokens) < len(whole.tokens)


def test_an_answer_ends_where_the_context_does(tmp_path: Path) -> None:
    model = speaker(tmp_path)
    answer = complete(model, [Request([1] * (MAX_LEN - 3), WARM)])[0]
    assert (len(answer.tokens), answer.finish) == (3, "length")


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (Request([]), "the prompt has no token"),
        (Request([1] * MAX_LEN), f"the prompt has {MAX_LEN} tokens, and the model's context of {MAX_LEN}"),
        (Request([1], max_tokens=0), "max_tokens=0"),
    ],
)
def test_what_cannot_be_answered_is_said_before_anything_is(tmp_path: Path, request_: Request, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        complete(speaker(tmp_path), [request_])
