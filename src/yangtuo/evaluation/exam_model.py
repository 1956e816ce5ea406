"""lm_eval's model over transformers, with one forward pass for what its requests have in common.

Choices of one question share the question, questions of one subject its introduction and solved examples: a shared
beginning is computed once, and its keys and values are reused. Only log-likelihoods are computed here; prompts,
tokens and scores are lm_eval's own.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from yangtuo import console
from yangtuo.inference.transformers_engine import ATTENTION_LAYERS

Ids = tuple[int, ...]
_GROUP_COST = 64  # tokens that a group of its own costs beside those computed: smaller batches
_MAX_TOKENS = 16_384  # of one forward pass, keys and values of the shared beginning included


@dataclass(frozen=True)
class _Input:
    """Tokens to read, and from which position on the next token's distribution is needed."""

    ids: Ids
    first: int


class ExamModel(HFLM):  # type: ignore[misc]
    """lm_eval's `hf` model; whatever it answers is what lm_eval's own would."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
        self._keeps_some = "logits_to_keep" in inspect.signature(model.forward).parameters
        # Layers that keep a state instead of keys and values cannot hand their beginning on to many inputs.
        self._shares = set(getattr(model.config, "layer_types", None) or ()) <= ATTENTION_LAYERS

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:  # noqa: ARG002
        result: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return result

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, is greedy) of each request (texts, context ids, continuation ids), in order."""
        wanted: dict[Ids, list[int]] = {}
        for index, (_texts, context, continuation) in enumerate(requests):
            wanted.setdefault(tuple((context + continuation)[-(self.max_length + 1) : -1]), []).append(index)
        inputs = {
            ids: _Input(ids, len(ids) - max(len(requests[index][2]) for index in indices))
            for ids, indices in wanted.items()
        }
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with console.progress("asking", total=len(requests), unit="choices") as bar:
            for item, log_probabilities in self._distributions(list(inputs.values())):
                for index in wanted[item.ids]:
                    results[index] = _score(log_probabilities, requests[index][2])
                bar.advance(len(wanted[item.ids]))
        return results

    def _distributions(self, inputs: Sequence[_Input]) -> Iterator[tuple[_Input, Tensor]]:
        """For each input the log-probabilities of the tokens after positions `first` on, [positions, vocabulary]."""
        for num_shared, group in share_beginnings(inputs) if self._shares else [(0, list(inputs))]:
            cache = self._read(group[0].ids[:num_shared]) if num_shared else None
            for batch in _batches(group, int(self.batch_size)):
                yield from zip(batch, self._batch(batch, num_shared, cache), strict=True)

    def _read(self, ids: Ids) -> Any:
        tokens = torch.tensor([ids], device=self.device)
        kept = {"logits_to_keep": 1} if self._keeps_some else {}
        return self.model(input_ids=tokens, use_cache=True, **kept).past_key_values

    def _batch(self, batch: Sequence[_Input], num_shared: int, cache: Any) -> Iterator[Tensor]:
        rows = [item.ids[num_shared:] for item in batch]
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=self.device)
        lengths = torch.tensor([len(item.ids) for item in batch], device=self.device)
        mask = torch.arange(num_shared + width, device=self.device) < lengths[:, None]
        # The output layer is as costly as many others: it is computed where some row needs it, and nowhere else.
        kept = sorted({place - num_shared for item in batch for place in range(item.first, len(item.ids))})
        arguments: dict[str, Any] = {"use_cache": False}
        if cache is not None:
            repeated = copy.deepcopy(cache)
            repeated.batch_repeat_interleave(len(batch))
            arguments = {"past_key_values": repeated, "use_cache": True}
        places = torch.tensor(kept, device=self.device)
        if self._keeps_some:
            arguments["logits_to_keep"] = places
        logits = self.model(input_ids=ids, attention_mask=mask.long(), **arguments).logits
        logits = logits if self._keeps_some else logits[:, places]
        for row, item in zip(logits.float(), batch, strict=True):
            begin = kept.index(item.first - num_shared)
            own = row[begin : begin + len(item.ids) - item.first]
            yield self._adjusted(own, item.ids).log_softmax(-1)

    def _adjusted(self, logits: Tensor, ids: Ids) -> Tensor:  # noqa: ARG002
        """The logits that are scored, after reading `ids`."""
        return logits


class ConstrainedModel(ExamModel):
    """As Chinese-LLaMA-Alpaca's C-Eval script: a letter is one token, spelled with and without a space before it.

    The script's repetition penalty counts; its temperature does not change which letter is likeliest.
    """

    _PENALTY = 1.1

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        letter = continuation.strip()
        spelled = letter if continuation != letter else f"：{letter}"
        index = 0 if continuation != letter else -1
        return self.tok_encode(context), [self.tok_encode(spelled, add_special_tokens=False)[index]]

    def _adjusted(self, logits: Tensor, ids: Ids) -> Tensor:
        seen = torch.tensor(sorted(set(ids)), device=logits.device)
        values = logits[:, seen]
        adjusted = torch.where(values < 0, values * self._PENALTY, values / self._PENALTY)
        return logits.index_copy(1, seen, adjusted)


def _score(log_probabilities: Tensor, continuation: Sequence[int]) -> tuple[float, bool]:
    own = log_probabilities[-len(continuation) :]
    tokens = torch.tensor(continuation, device=own.device)
    return float(own.gather(1, tokens[:, None]).sum()), bool((own.argmax(-1) == tokens).all())


def _batches(group: Sequence[_Input], batch_size: int) -> Iterator[list[_Input]]:
    """Inputs of like length together, the longest first."""
    batch: list[_Input] = []
    for item in sorted(group, key=lambda item: -len(item.ids)):
        if batch and (len(batch) == batch_size or len(batch[0].ids) * (len(batch) + 1) > _MAX_TOKENS):
            yield batch
            batch = []
        batch.append(item)
    yield batch


def share_beginnings(inputs: Sequence[_Input]) -> Iterator[tuple[int, list[_Input]]]:
    """Groups of inputs with how many of their first tokens are equal, such that few tokens are computed in all."""
    ordered = sorted(inputs, key=lambda item: item.ids)
    # A position whose distribution is needed is computed for each input on its own.
    common = [_num_equal(left, right) for left, right in pairwise(ordered)]
    alone: list[_Input] = []
    for num_shared, begin, end in _cheapest(ordered, common, 0, len(ordered))[1]:
        if end - begin == 1 or num_shared == 0:
            alone += ordered[begin:end]
        else:
            yield num_shared, ordered[begin:end]
    if alone:
        yield 0, alone


def _num_equal(left: _Input, right: _Input) -> int:
    limit = min(left.first, right.first)
    return next((index for index in range(limit) if left.ids[index] != right.ids[index]), limit)


def _cheapest(
    ordered: Sequence[_Input], common: Sequence[int], begin: int, end: int
) -> tuple[int, list[tuple[int, int, int]]]:
    """Cost in tokens and the groups (shared, begin, end) of [begin, end): one group, or cut where least is shared."""
    total = sum(len(ordered[index].ids) for index in range(begin, end))
    if end - begin == 1:
        return total + _GROUP_COST, [(0, begin, end)]
    shared = min(common[begin : end - 1])
    whole = total - shared * (end - begin - 1) + _GROUP_COST
    cuts = [begin, *(index + 1 for index in range(begin, end - 1) if common[index] == shared), end]
    parts = [_cheapest(ordered, common, left, right) for left, right in pairwise(cuts)]
    if sum(cost for cost, _ in parts) < whole:
        return sum(cost for cost, _ in parts), [group for _, groups in parts for group in groups]
    return whole, [(shared, begin, end)]
