"""Bits per byte: how well a model predicts text, whatever its vocabulary.

The negative log2-likelihood of a document divided by its UTF-8 bytes; unlike perplexity per token it can be compared
between a base and a model with more pieces. It knows no templates and no stages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from yangtuo import console
from yangtuo.evaluation.intervals import ratio_of_sums
from yangtuo.vocab.encoding import Encoder

MAX_WINDOW = 2048  # tokens


@dataclass(frozen=True)
class TextScore:
    """Sums over documents, and those of each document."""

    document_bits: tuple[float, ...]
    document_bytes: tuple[int, ...]
    num_characters: int
    num_tokens: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the text in UTF-8."""
        return sum(self.document_bytes)

    @property
    def bits_per_byte(self) -> float:
        """Bits needed for a byte of the text."""
        return sum(self.document_bits) / self.num_bytes

    @property
    def tokens_per_character(self) -> float:
        """Tokens spent on a character of the text."""
        return self.num_tokens / self.num_characters

    def to_dict(self) -> dict[str, Any]:
        """The figures as they are reported, with an interval of 95 % over documents."""
        interval = ratio_of_sums(self.document_bits, self.document_bytes)
        rows = zip(self.document_bits, self.document_bytes, strict=True)
        return {
            "bits_per_byte": round(self.bits_per_byte, 4),
            "bits_per_byte_interval": interval and tuple(round(end, 4) for end in interval),
            "tokens_per_character": round(self.tokens_per_character, 4),
            "num_documents": len(self.document_bits),
            "num_bytes": self.num_bytes,
            "num_tokens": self.num_tokens,
            "documents": [{"bits": round(bits, 3), "num_bytes": num_bytes} for bits, num_bytes in rows],
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
    windows = [
        (number, ids[begin : begin + window + 1])
        for number, ids in enumerate(encoded)
        for begin in range(0, len(ids) - 1, window)
    ]
    windows.sort(key=lambda item: len(item[1]))
    nats = [0.0] * len(encoded)
    with console.progress("scoring", total=len(windows), unit="windows") as bar:
        for first in range(0, len(windows), batch_size):
            batch = windows[first : first + batch_size]
            sums = _negative_log_likelihoods(model, [ids for _, ids in batch])
            for (number, _), value in zip(batch, sums, strict=True):
                nats[number] += value
            bar.advance(len(batch))
    return TextScore(
        document_bits=tuple(value / math.log(2) for value in nats),
        document_bytes=tuple(len(text.encode()) for text in documents),
        num_characters=sum(map(len, documents)),
        num_tokens=sum(len(ids) - 1 for ids in encoded),
    )


def _negative_log_likelihoods(model: PreTrainedModel, batch: Sequence[Sequence[int]]) -> list[float]:
    """Sums in nats over all tokens but the first of each of the right-padded windows."""
    width = max(map(len, batch))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in batch], device=model.device)
    lengths = torch.tensor([len(row) for row in batch], device=model.device)
    mask = torch.arange(width, device=model.device) < lengths[:, None]
    logits = model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1].long()).logits
    nll = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")
    sums: list[float] = (nll * mask[:, 1:]).double().sum(dim=1).tolist()
    return sums
