"""serve: a model as lm-eval sees it (extra [eval]). Tasks are YAML files beside local data; nothing asks a hub.

Log-likelihoods use the packed forward pass of training: questions of any lengths share one pack, without padding.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
from lm_eval.utils import (  # pyright: ignore[reportMissingImports]
    get_rolling_token_windows,
    make_disjoint_window,
    make_table,
)

from internevo_engine.errors import DataError
from internevo_engine.serve.generate import Request, complete
from internevo_engine.serve.load import LanguageModel
from internevo_engine.serve.sampling import Sampling

PACK_TOKENS = 2048
"""Tokens that go through the model at once, unless one question is longer."""
BATCH = 8
"""Answers written at once."""
Scored = tuple[float, bool]
"""Log-likelihood of a continuation, and whether each of its tokens is the likeliest."""


def run_tasks(model: LanguageModel, tasks: Sequence[str], include_path: Path | None, limit: int | None) -> str:
    """lm-eval's table of results.

    Raises:
        DataError: there is no such task.
    """
    manager = TaskManager(include_path=include_path and str(include_path), include_defaults=include_path is None)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise DataError(f"lm-eval knows no task {unknown[0]} in {include_path or 'its own tasks'}")
    results = simple_evaluate(Adapter(model), tasks=list(tasks), task_manager=manager, limit=limit, log_samples=False)
    return make_table(results)


class Adapter(TemplateLM):
    """lm-eval's interface, over a LanguageModel."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self._model = model

    @property
    def eot_token_id(self) -> int:
        return min(self._model.stop_ids)

    def tok_encode(self, string: str, **_: Any) -> list[int]:
        return self._model.vocabulary.begin(string)

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[Scored]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        return [scored for pack in _packs(pairs) for scored in _score(self._model, pack)]

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """Of whole texts, each token once, in windows of the model's length."""
        found = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._model.max_len - 1,
                context_len=1,
            )
            pairs = [make_disjoint_window(window) for window in windows]
            found.append(sum(value for pack in _packs(pairs) for value, _ in _score(self._model, pack)))
        return found

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        asked = [self._request(*request.args) for request in requests]
        batches = (asked[begin : begin + BATCH] for begin in range(0, len(asked), BATCH))
        return [answer.text for batch in batches for answer in complete(self._model, batch)]

    def _request(self, context: str, settings: dict[str, Any]) -> Request:
        until = settings.get("until", [])
        max_tokens = settings.get("max_gen_toks", 256)
        temperature = settings.get("temperature", 0.0) if settings.get("do_sample") else 0.0
        prompt = self.tok_encode(context)[-max(1, self._model.max_len - max_tokens) :]
        stop = [until] if isinstance(until, str) else until
        return Request(prompt, Sampling(temperature=temperature), max_tokens, stop, continues_text=True)


Pair = tuple[list[int], list[int]]
"""Context and continuation."""


def _packs(pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    pack, size = list[Pair](), 0
    for pair in pairs:
        length = len(pair[0]) + len(pair[1])
        if pack and size + length > PACK_TOKENS:
            yield pack
            pack, size = [], 0
        pack.append(pair)
        size += length
    if pack:
        yield pack


@torch.no_grad()
def _score(model: LanguageModel, pack: Sequence[Pair]) -> Iterator[Scored]:
    """The pairs of a pack in one forward pass; what is longer than the model's context loses its beginning."""
    whole = [[*context, *continuation][-model.max_len - 1 :] for context, continuation in pack]
    lengths = [len(tokens) - 1 for tokens in whole]
    device = model.decoder.embedding.weight.device
    tokens_P = torch.tensor([token for tokens in whole for token in tokens[:-1]], device=device)
    positions_P = torch.cat([torch.arange(length, device=device) for length in lengths])
    ends = torch.tensor([0, *lengths], device=device).cumsum(0)
    logits_PV = model.decoder(tokens_P, positions_P, ends.to(torch.int32))
    for end, (_, continuation) in zip(ends[1:].tolist(), pack, strict=True):
        wanted = torch.tensor(continuation, device=device)
        scores = logits_PV[end - len(continuation) : end].float().log_softmax(-1)
        value = scores.gather(1, wanted[:, None]).sum()
        yield float(value), bool((scores.argmax(-1) == wanted).all())
