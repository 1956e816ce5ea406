"""Which positions of a batch are of the old language, and what the model without its adapter says there.

After an expansion languages are told apart by their tokens: a document with hardly any new ones is of the old one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from yangtuo.errors import TrainingError, UserError
from yangtuo.training import adapter, loss

_NEW_LANGUAGE = 0.1  # of a document's tokens: fewer new ones, and it is of the old language


def check_head(model: Any) -> list[UserError]:
    """What speaks against it in a model, empty or not: logits that are not its head's rows times its states."""
    if loss.can_refer(adapter.inner(model)):
        return []
    return [
        TrainingError(
            "--kl-coef needs logits that are the head's rows times the states",
            found="a head with a LoRA of its own, or logits that are changed afterwards",
            run="the same command without --kl-coef",
        )
    ]


def reference(
    model: Any, inputs: Mapping[str, Tensor], first_new_row: int, coefficient: float, among: Tensor | None
) -> loss.Reference | None:
    """What the model without its adapter makes of `inputs` (B, T), or None where nothing is of the old language.

    `among` (B,) are the rows that count, all where it is None. See Hinton et al. 2015 (arXiv 1503.02531) for learning
    from distributions, and Li and Hoiem 2016 (arXiv 1606.09282) for doing so to forget less.
    """
    is_old = in_old_language(inputs["input_ids"], inputs["position_ids"], first_new_row)
    if among is not None:
        is_old &= among[:, None].bool()
    if not is_old.any():
        return None
    with model.disable_adapter():
        return loss.refer_to(adapter.inner(model), inputs, coefficient * is_old.float())


def in_old_language(ids: Tensor, positions: Tensor, first_new_row: int) -> Tensor:
    """Which of `ids` (B, T) stand in documents of the old language; `positions` (B, T) restart at each document."""
    documents = (positions == 0).long()
    documents[:, 0] = 1
    documents = documents.flatten().cumsum(0) - 1
    is_new = (ids >= first_new_row).float().flatten()
    shares = torch.zeros(int(documents[-1]) + 1, device=ids.device)
    shares = shares.scatter_reduce(0, documents, is_new, "mean", include_self=False)
    return (shares < _NEW_LANGUAGE)[documents].view_as(ids)
