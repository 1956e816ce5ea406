"""Texts that tell tokenizers apart, and the comparison of two readers of one directory."""

from __future__ import annotations

import random
from pathlib import Path

from transformers import AutoTokenizer

from yangtuo.vocab.encoding import load_encoder

BLANKS = [" " * count for count in range(1, 70)]
AWKWARD = [
    "",
    *BLANKS,
    *("x" + blanks + "y" for blanks in BLANKS),
    *(blanks + "你" for blanks in BLANKS),
    "\t\tx",
    "\n\n a \n",
    "\u2581\u2581a\u2581",
    "e\u0301 \u3000 \u00a0",
    "<0x0A>",
    "a\u0000b",
    "🦙🦙",
    "-----====#####",
    "  return  x\r\n",
]


def random_texts(seed: int, count: int) -> list[str]:
    """Texts over an alphabet that provokes blanks, bytes and merges."""
    choice = random.Random(seed)
    alphabet = " \t\nabehrtno,.1\u2581你好é-=*"
    return ["".join(choice.choices(alphabet, k=choice.randint(1, 40))) for _ in range(count)]


def assert_same_ids(directory: Path, texts: list[str]) -> None:
    """AutoTokenizer (what every other tool loads) gives the ids that SentencePiece gives."""
    encoder, fast = load_encoder(directory), AutoTokenizer.from_pretrained(directory)
    expected = encoder.encode_batch(texts)
    found = fast(texts, add_special_tokens=False).input_ids if texts else []
    differing = [text for text, one, other in zip(texts, expected, found, strict=True) if one != other]
    assert not differing, differing[:3]
