"""Bits that a base, and the model grown from it, need for the same windows of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from yangtuo.growing.states import last_states, log_sums
from yangtuo.growing.windows import align
from yangtuo.weights.checkpoint import Tensors
from yangtuo.weights.shape import FAMILIES, USUAL


def base_bits(
    config: Mapping[str, Any], tensors: Tensors, windows: Tensor, sources: Sequence[Sequence[int]], num_old: int
) -> float:
    """Bits that the base needs for `windows` (num_windows, length) of new ids, in its own tokens, after the first."""
    aligned = align(windows, num_old, sources)
    states = last_states(config, tensors, aligned.ids)
    first = aligned.ends[:, :1]
    places = torch.arange(aligned.ids.shape[1])[None]
    counted = (places > first) & (places <= aligned.ends[:, -1:])
    return _bits(_head(config, tensors), states[:, :-1][counted[:, 1:]], aligned.ids[counted])


def grown_bits(config: Mapping[str, Any], tensors: Tensors, windows: Tensor) -> float:
    """Bits that a model needs for `windows` (num_windows, length) after the first token of each."""
    states = last_states(config, tensors, windows)
    return _bits(_head(config, tensors), states[:, :-1].flatten(0, 1), windows[:, 1:].flatten())


def _head(config: Mapping[str, Any], tensors: Tensors) -> Tensor:
    family = FAMILIES.get(config["model_type"], USUAL)
    return tensors.get(family.head if family.head in tensors.names() else family.embedding)


@torch.no_grad()
def _bits(head: Tensor, states: Tensor, targets: Tensor) -> float:
    sums = log_sums(head, states, torch.arange(len(states)))
    logits = (states.float() * head[targets].float()).sum(dim=1)
    return float((sums - logits).double().sum()) / math.log(2)


def byte_entropy(texts: Sequence[str]) -> float:
    """Bits per byte that the frequencies of the bytes alone would need: whoever needs more cannot read the text."""
    counts = torch.bincount(torch.frombuffer(bytearray("".join(texts).encode()), dtype=torch.uint8), minlength=256)
    shares = counts[counts > 0].double() / counts.sum()
    return float(-(shares * shares.log2()).sum())
