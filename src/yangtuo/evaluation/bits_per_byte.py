"""Bits per byte: how well a model predicts text, whatever its vocabulary.

The negative log2-likelihood of a document divided by its UTF-8 bytes; unlike perplexity per token it can be compared
between a base and a model with more pieces. It knows no templates and no stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from yangtuo import console
from yangtuo.errors import VocabularyError
from yangtuo.evaluation.intervals import ratio_of_sums
from yangtuo.training import held_out, loss
from yangtuo.vocab.encoding import Encoder

MAX_WINDOW = 2048  # tokens
_TRIED = 64  # tokens by which it is tried whether a head is plain


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


@torch.no_grad()
def score_text(model: PreTrainedModel, encoder: Encoder, documents: Sequence[str], batch_size: int = 16) -> TextScore:
    """Scores each document from its start, after BOS, in sliding windows of at most `MAX_WINDOW` tokens.

    Every token but BOS is predicted once, with half a window before it where the document has as much.
    """
    size = min(MAX_WINDOW, getattr(model.config, "max_position_embeddings", None) or MAX_WINDOW)
    start = encoder.bos_id if encoder.bos_id is not None else encoder.eos_id
    if start is None:
        raise VocabularyError(
            "the tokenizer cannot mark where a text begins", found="neither BOS nor EOS", expected="one of the two"
        )
    encoded = [torch.tensor([start, *ids]) for ids in encoder.encode_batch(documents)]
    windows = held_out.slide([len(ids) for ids in encoded], size)
    nats = [0.0] * len(encoded)
    score = _scorer(model, min(size, _TRIED))
    with console.progress("scoring", total=len(windows), unit="windows") as bar:
        for batch in held_out.group(windows, batch_size * size):
            inputs, rows = held_out.collate(encoded, batch)
            sums = score(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
            for number, value in zip(rows, sums.tolist(), strict=True):
                nats[number] += value
            bar.advance(len(batch))
    return TextScore(
        document_bits=tuple(value / math.log(2) for value in nats),
        document_bytes=tuple(len(text.encode()) for text in documents),
        num_characters=sum(map(len, documents)),
        num_tokens=sum(len(ids) - 1 for ids in encoded),
    )


def _scorer(model: PreTrainedModel, num_tried: int) -> Callable[..., Tensor]:
    """The loss by row of `model`: in slices where its head is plain, which is tried, else by its own logits."""
    own: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    ids = torch.arange(num_tried, device=model.device)[None] % own.config.get_text_config().vocab_size
    near = 1e-5 if own.dtype == torch.float32 else 1e-3
    is_plain = loss.has_plain_head(own)
    if is_plain:
        in_slices, by_logits = (loss.nats_by_row(own, ids, sliced, input_ids=ids) for sliced in (True, False))
        is_plain = torch.allclose(in_slices, by_logits, rtol=near)
    return partial(loss.nats_by_row, own, sliced=is_plain)
