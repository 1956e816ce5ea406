"""The next token of each row of a batch, by that row's own settings, seed and history."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from yangtuo.inference.engine import Sampling, Token, not_finite


class Chooser:
    """What one request needs to have its tokens chosen; rows beside it change nothing."""

    def __init__(self, prompt: Sequence[int], sampling: Sampling) -> None:
        self.sampling = sampling
        self.produced: list[int] = []
        self._prompt = torch.tensor(sorted(set(prompt)))
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed % (1 << 63))

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token is all that is asked for, after `logit_bias`."""
        sampling = self.sampling
        return sampling.temperature == 0 and sampling.logprobs is None and not self._is_penalised

    @property
    def _is_penalised(self) -> bool:
        sampling = self.sampling
        return bool(sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1)

    def choose(self, logits: torch.Tensor) -> Token:
        """The next token from its `logits`, float32 (vocabulary,), on the CPU."""
        scores = self._penalised(logits) if self._is_penalised or self.sampling.logit_bias else logits
        token = int(scores.argmax()) if self.sampling.temperature == 0 else self._draw(scores)
        return report(logits, token, self.sampling.logprobs)

    def _penalised(self, logits: torch.Tensor) -> torch.Tensor:
        sampling, scores = self.sampling, logits.clone()
        produced, counts = torch.unique(torch.tensor(self.produced, dtype=torch.long), return_counts=True)
        if sampling.repetition_penalty != 1:
            seen = torch.unique(torch.cat([self._prompt, produced]))
            values = scores[seen]
            penalty = sampling.repetition_penalty
            scores[seen] = torch.where(values < 0, values * penalty, values / penalty)
        scores[produced] -= sampling.presence_penalty + sampling.frequency_penalty * counts.float()
        for token, bias in sampling.logit_bias:
            scores[token] += bias
        return scores

    def _draw(self, scores: torch.Tensor) -> int:
        """Temperature, then top-k, top-p and min-p, each over what the one before it left."""
        sampling = self.sampling
        values, ids = (scores / sampling.temperature).sort(descending=True, stable=True)
        if sampling.top_k:
            values = values[: sampling.top_k]
        weights = values.softmax(-1)
        if sampling.top_p < 1:
            before = weights.cumsum(-1) - weights
            weights = weights[: max(1, int((before < sampling.top_p).sum()))]
        if sampling.min_p:
            weights = weights[: max(1, int((weights >= sampling.min_p * weights[0]).sum()))]
        return int(ids[torch.multinomial(weights, 1, generator=self._random)])


def report(logits: torch.Tensor, token: int, count: int | None) -> Token:
    """The token with its log probability and the `count` likeliest, or without any where `count` is None."""
    if count is None:
        return Token(token)
    probabilities = logits.log_softmax(-1)
    values, ids = probabilities.topk(min(count, len(logits)))
    return Token(token, float(probabilities[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def choose(choosers: Sequence[Chooser], logits: torch.Tensor) -> list[Token]:
    """The next token of every row of `logits` (rows, vocabulary); raises `EngineError` where they are no numbers."""
    logits = logits.float()
    for index, chooser in enumerate(choosers):
        if chooser.is_plain and chooser.sampling.logit_bias:
            tokens, biases = zip(*chooser.sampling.logit_bias, strict=True)
            logits[index, list(tokens)] += torch.tensor(biases, device=logits.device)
    best = logits.max(-1)
    if not bool(torch.isfinite(best.values).all()):
        raise not_finite()
    likeliest = best.indices.tolist()
    rows = None if all(chooser.is_plain for chooser in choosers) else logits.cpu()
    chosen = []
    for index, chooser in enumerate(choosers):
        plain = rows is None or chooser.is_plain
        token = Token(likeliest[index]) if plain or rows is None else chooser.choose(rows[index])
        chooser.produced.append(token.id)
        chosen.append(token)
    return chosen
