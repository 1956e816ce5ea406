"""ROUGE-1, ROUGE-2 and ROUGE-L F-scores of Chinese text, as the PromptCBLUE benchmark computes them.

Text is cut as BERT's basic tokenizer does (every Chinese character and punctuation mark on its own, lower case, accents
removed); n-grams are compared as sets, ROUGE-L on the whole token lists. This module knows no files and no tasks.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
_EMPTY = ["无", "。"]  # what a text without tokens counts as
_EPSILON = 1e-8  # in the denominator of F: a perfect score is 0.999999995


def rouge(hypothesis: str, reference: str) -> dict[str, float]:
    """F of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) under `rouge1`, `rouge2` and `rougeL`."""
    predicted, expected = tokenize(hypothesis) or _EMPTY, tokenize(reference) or _EMPTY
    scores = {
        f"rouge{size}": _f_score(len(left & right), len(left), len(right))
        for size, left, right in ((size, _ngrams(predicted, size), _ngrams(expected, size)) for size in (1, 2))
    }
    common = _longest_common_subsequence(predicted, expected)
    return {**scores, "rougeL": _f_score(common, len(predicted), len(expected))}


def tokenize(text: str) -> list[str]:
    """Tokens of BERT's basic tokenizer, lower-cased."""
    spaced = "".join(_spaced(character) for character in text)
    return [token for word in spaced.split() for token in _split_punctuation(_plain(word))]


def _spaced(character: str) -> str:
    category = unicodedata.category(character)
    if character in "\t\n\r" or category == "Zs":
        return " "
    if character in "\0\ufffd" or category.startswith("C"):
        return ""
    if any(low <= ord(character) <= high for low, high in _CHINESE):
        return f" {character} "
    return character


def _plain(word: str) -> str:
    decomposed = unicodedata.normalize("NFD", word.lower())
    return "".join(character for character in decomposed if unicodedata.category(character) != "Mn")


def _split_punctuation(word: str) -> list[str]:
    return "".join(f" {character} " if _is_punctuation(character) else character for character in word).split()


def _is_punctuation(character: str) -> bool:
    is_ascii_sign = character.isascii() and character.isprintable() and not character.isalnum() and character != " "
    return is_ascii_sign or unicodedata.category(character).startswith("P")


def _ngrams(tokens: Sequence[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)}


def _f_score(num_common: int, num_predicted: int, num_expected: int) -> float:
    precision = num_common / num_predicted if num_predicted else 0.0
    recall = num_common / num_expected if num_expected else 0.0
    return 2.0 * (precision * recall / (precision + recall + _EPSILON))


def _longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Length, with a row of the table as the bits of an integer (Hyyrö 2004): long replies stay cheap."""
    places: dict[str, int] = {}
    for index, token in enumerate(left):
        places[token] = places.get(token, 0) | 1 << index
    full = (1 << len(left)) - 1
    row = full
    for token in right:
        matched = row & places.get(token, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(left) - row.bit_count()
