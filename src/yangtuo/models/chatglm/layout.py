"""Where ChatGLM's tokens stand and what they see, worked out from ids alone.

A document is a prompt that ends with [gMASK] or holds [MASK], then `<sop>` and the answer. The prompt sees itself
whole, the answer sees the prompt and what came before in the answer. Every token has two positions: its place in the
prompt, which stops at the mask token, and its place in the answer, which is 0 before `<sop>`.
Shapes: B rows, S tokens, N of them new.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from yangtuo.models.chatglm.config import ChatGLMConfig

_NOWHERE = 1 << 40


@dataclass(frozen=True)
class Layout:
    """Positions and visibility of a batch of rows, each of one document or several."""

    positions: Tensor
    """(B, 2, S): place in the prompt, place in the answer."""
    _documents: Tensor
    _in_prompt: Tensor
    _is_real: Tensor | None

    def visible(self, num_new: int) -> Tensor:
        """(B, 1, N, S), True where one of the last `num_new` tokens attends to a token.

        Every token sees itself, padding too: a row of scores with nothing in it has no softmax.
        """
        length = self._documents.shape[1]
        places = torch.arange(length, device=self._documents.device)
        queries = places[length - num_new :, None]
        seen = (places <= queries) | self._in_prompt[:, None, :]
        seen = seen & (self._documents[:, length - num_new :, None] == self._documents[:, None, :])
        if self._is_real is not None:
            seen = seen & self._is_real[:, None, :]
        return (seen | (places == queries))[:, None]


def make_layout(
    config: ChatGLMConfig, input_ids: Tensor, attention_mask: Tensor | None, places: Tensor | None
) -> Layout:
    """The layout of `input_ids` (B, S).

    `attention_mask` (B, S) is 0 on padding, on either side. `places` (B, S) restart at 0 with each document of a
    packed row; without them a row is one document. Raises `ValueError` where a row has no `<sop>`, or a document
    has one and no mask token.
    """
    is_real = None if attention_mask is None else attention_mask.bool()
    if places is None:
        if is_real is None:
            places = torch.arange(input_ids.shape[1], device=input_ids.device)
        else:
            places = (is_real.long().cumsum(-1) - 1).clamp(min=0)
    places = places.expand(input_ids.shape)
    starts = places.eq(0) if is_real is None else places.eq(0) & is_real
    documents = starts.long().cumsum(-1)

    def first(token: int | None) -> Tensor:
        """At each token, the place of the first such `token` in its document."""
        assert token is not None, "the config fills in what is not given"
        matches = input_ids.eq(token) if is_real is None else input_ids.eq(token) & is_real
        where = torch.where(matches, places, _NOWHERE)
        least = torch.full((len(input_ids), input_ids.shape[1] + 1), _NOWHERE, device=input_ids.device)
        return least.scatter_reduce_(1, documents, where, "amin").gather(1, documents)

    begin, gmask, mask = first(config.bos_token_id), first(config.gmask_token_id), first(config.mask_token_id)
    mask_at = torch.where(gmask < _NOWHERE, gmask, mask)
    _require_tokens(begin, mask_at)
    in_prompt = places < begin
    positions = torch.where(
        in_prompt, torch.stack([places, torch.zeros_like(places)]), torch.stack([mask_at, places - begin + 1])
    )
    return Layout(positions.transpose(0, 1), documents, in_prompt, is_real)


def _require_tokens(begin: Tensor, mask_at: Tensor) -> None:
    has_begin = begin < _NOWHERE
    if bool((~has_begin.any(-1)).any() | (has_begin & (mask_at == _NOWHERE)).any()):
        raise ValueError(
            "ChatGLM reads a prompt with [gMASK] or [MASK], then <sop>; a row of this batch lacks one of them"
        )
