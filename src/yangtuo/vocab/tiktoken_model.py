"""Meta's tokenizer.model since Llama 3, lines of a base64 token and its rank, as a byte-level BPE tokenizer.json.

The file names no special tokens: Meta's code counts 256 of them on from the last rank. This module knows no directory.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from tokenizers import Regex, decoders, pre_tokenizers

from yangtuo.errors import FileError
from yangtuo.files import LARGE, read_bytes
from yangtuo.vocab.fast_tokenizer import fast_text

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 cuts text into words, from Meta's tokenizer.py."""

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
_NUM_SPECIAL = 256


def llama_3_tokenizer(path: Path, *, is_3_1: bool) -> str:
    """The text of a tokenizer.json with the ids of the tiktoken file `path`; raises `FileError` where it is none.

    Llama 3.1 and later name three of the reserved special tokens; text is cut alike in all.
    """
    ranks = _read_ranks(path)
    letters = _byte_letters()
    texts = {token: "".join(letters[byte] for byte in token) for token in ranks}
    return fast_text(
        {texts[token]: rank for token, rank in ranks.items()},
        [(texts[left], texts[right]) for left, right in _merges(ranks)],
        [(token, True) for token in _special_tokens(is_3_1)],
        pre_tokenizer=llama_3_words(),
        decoder=decoders.ByteLevel(),
        first=BEGIN,
        ignore_merges=True,
    )


def llama_3_words() -> Any:
    """The pre-tokenizer of Llama 3: words by its pattern, as bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _read_ranks(path: Path) -> dict[bytes, int]:
    try:
        lines = [line.split() for line in read_bytes(path, LARGE).splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except (ValueError, binascii.Error) as error:
        raise FileError(
            f"{path} is neither a SentencePiece model nor tiktoken's lines", found=str(error), expected="TOKEN RANK"
        ) from error
    if sorted(ranks.values()) != list(range(len(ranks))) or len(ranks) < 256:
        raise FileError(
            f"{path} is cut short", found=f"{len(ranks):,} ranks", expected="all ranks from 0 without a gap"
        )
    return ranks


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every way to put a token together from two others, by the rank of the result and of the parts."""
    merges = []
    for token, rank in ranks.items():
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        halves = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        merges += [(rank, ranks[left], ranks[right], left, right) for left, right in halves]
    return [(left, right) for *_, left, right in sorted(merges)]


def _special_tokens(is_3_1: bool) -> list[str]:
    named = {0: BEGIN, 1: END, 6: "<|start_header_id|>", 7: "<|end_header_id|>", 9: "<|eot_id|>"}
    if is_3_1:
        named |= {4: "<|finetune_right_pad_id|>", 8: "<|eom_id|>", 10: "<|python_tag|>"}
    reserved = (f"<|reserved_special_token_{number}|>" for number in range(_NUM_SPECIAL))
    return [named.get(index) or next(reserved) for index in range(_NUM_SPECIAL)]


def _byte_letters() -> list[str]:
    """GPT-2's letter of each byte: itself where it prints, else the next free code point from 256 on."""
    prints = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in prints else next(spare)) for byte in range(256)]
