"""Bits per byte: how well a model predicts text, whatever its vocabulary.

The negative log2-likelihood of a document divided by its UTF-8 bytes; unlike perplexity per token it can be compared
between a base and a model with more pieces. It knows no templates and no stages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from yangtuo import console
from yangtuo.vocab.encoding import Encoder

MAX_WINDOW = 2048  # tokens


@dataclass(frozen=True)
class TextScore:
    """Sums over documents."""

    bits: float
    num_bytes: int
    num_characters: int
    num_tokens: int

    @property
    def bits_per_byte(self) -> float:
        """Bits needed for a byte of the text."""
        return self.bits / self.num_bytes

    @property
    def tokens_per_character(self) -> float:
        """Tokens spent on a character of the text."""
        return self.num_tokens / self.num_characters

    def to_dict(self) -> dict[str, float]:
        """The figures as they are reported."""
        return {
            "bits_per_byte": round(self.bits_per_byte, 4),
            "tokens_per_character": round(self.tokens_per_character, 4),
            "num_bytes": self.num_bytes,
            "num_tokens": self.num_tokens,
        }


@torch.inference_mode()
def score_text(model: PreTrainedModel, encoder: Encoder, documents: Sequence[str], batch_size: int = 16) -> TextScore:
    """Scores each document from its start, after BOS, in consecutive windows of at most `MAX_WINDOW` tokens.

    Every token but BOS is predicted once; a window sees nothing of the one before it.
    """
    window = min(MAX_WINDOW, int(model.config.max_position_embeddings)) - 1
    start = encoder.bos_id if encoder.bos_id is not None else encoder.eos_id
    assert start is not None, "a tokenizer without BOS and EOS"
    encoded = [[start, *ids] for ids in encoder.encode_batch(documents)]
    windows = [ids[i : i + window + 1] for ids in encoded for i in range(0, len(ids) - 1, window)]
    windows.sort(key=len)
    nats = 0.0
    with console.progress("scoring", total=len(windows), unit="windows") as bar:
        for first in range(0, len(windows), batch_size):
            batch = windows[first : first + batch_size]
            nats += _negative_log_likelihood(model, batch)
            bar.advance(len(batch))
    return TextScore(
        bits=nats / math.log(2),
        num_bytes=sum(len(text.encode()) for text in documents),
        num_characters=sum(map(len, documents)),
        num_tokens=sum(len(ids) - 1 for ids in encoded),
    )


def _negative_log_likelihood(model: PreTrainedModel, batch: Sequence[Sequence[int]]) -> float:
    """Sum in nats over all tokens of right-padded windows but the first of each."""
    width = max(map(len, batch))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in batch], device=model.device)
    lengths = torch.tensor([len(row) for row in batch], device=model.device)
    mask = torch.arange(width, device=model.device) < lengths[:, None]
    logits = model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1].long()).logits
    nll = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")
    return float((nll * mask[:, 1:]).double().sum())
