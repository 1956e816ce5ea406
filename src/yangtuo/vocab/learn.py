"""Learning new pieces: byte-pair encoding (Sennrich et al. 2016) continued where a base tokenizer ends.

The base's own pieces are the first symbols, so every learned piece is reachable by merges once the base's are done.
The counting is done by Hugging Face's trainer, over one private character a symbol. Knows no files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from yangtuo.errors import VocabularyError
from yangtuo.vocab.scripts import BLANK, Scripts
from yangtuo.vocab.sentencepiece_model import NORMAL

CHARACTER_COVERAGE = 0.9995
"""Share of the text's characters that get a piece of their own; the rare rest stays bytes."""
MAX_PIECE_LENGTH = 16
_MIN_COUNT = 2
_CHARACTER_SHARE = 0.6  # of the new pieces, where words are left to learn

Item = TypeVar("Item")
_BLOCK = 1 << 15


@dataclass(frozen=True)
class Learned:
    """New pieces in the order of their merging, single characters first."""

    pieces: list[str]
    num_characters: int
    """How many of `pieces` are single characters."""


def learn_pieces(base: Any, texts: Iterable[str], size: int, scripts: Scripts) -> Learned:
    """Learns `size` pieces of `scripts` for the SentencePiece BPE model `base` from `texts`.

    Raises `VocabularyError` where the texts hold fewer.
    """
    known = {piece.piece for piece in base.pieces if piece.type == NORMAL}
    lines, counts = script_lines(texts, scripts, blank=BLANK)
    characters = covering_characters(counts)
    apart = [one for one in characters if one not in known]

    def learn(new: Sequence[str]) -> list[str]:
        alphabet = [*new, *(one for one in characters if one in known)]
        merges = train_merges(restricted_lines(lines, set(alphabet)), alphabet, size - len(new))
        products = dict.fromkeys(left + right for left, right in merges)
        return [*new, *(piece for piece in products if piece not in known)]

    pieces = learn_within(size, apart, learn)
    return Learned(pieces, sum(len(piece) == 1 for piece in pieces))


def learn_within(size: int, characters: Sequence[str], learn: Callable[[Sequence[str]], list[Item]]) -> list[Item]:
    """The first `size` items of `learn(characters)`, given only as many `characters` as leave room for words.

    Where words are too few, all characters are taken. Measured on unseen text (docs/design/010-vocabulary.md): with
    few characters bytes are left in every text, with many no words are learned. Raises `VocabularyError` where the
    corpus holds less than `size`.
    """
    learned = learn(characters[: round(_CHARACTER_SHARE * size)])
    if len(learned) < size < len(learned) + len(characters):
        learned = learn(characters[:size])
    if len(learned) < size:
        raise VocabularyError(
            f"the corpus does not hold {size:,} new pieces",
            found=f"{len(learned):,} pieces that occur at least twice",
            expected="a larger corpus, or a smaller --size",
            run=f"the same command with --size {max(len(learned) // 100 * 100, 1)}",
        )
    return learned[:size]


def cut_blocks(line: str) -> Iterator[str]:
    """Parts of about 32,000 characters, cut at newlines."""
    start = 0
    while start < len(line):
        end = line.find("\n", start + _BLOCK)
        end = len(line) if end < 0 else end
        yield line[start:end]
        start = end


def script_lines(texts: Iterable[str], scripts: Scripts, *, blank: str) -> tuple[list[str], Counter[str]]:
    """The runs of `scripts` in each text, parted by newlines, and how often each character is met.

    Blanks at the head of runs are written as `blank`. Raises `VocabularyError` where there is no such text.
    """
    lines: list[str] = []
    counts: Counter[str] = Counter()
    for text in texts:
        line = "\n".join(scripts.runs(text)).replace(" ", blank)
        if line:
            lines.append(line)
            counts.update(line)
    del counts["\n"]
    if not counts:
        raise VocabularyError(
            f"the corpus holds no text in {' or '.join(scripts.names)}",
            found="no character of that script",
            expected="text in the language to learn, or another --script",
        )
    return lines, counts


def covering_characters(counts: Counter[str]) -> list[str]:
    """The most frequent characters that make up `CHARACTER_COVERAGE` of all, in that order."""
    left = CHARACTER_COVERAGE * counts.total()
    covering: list[str] = []
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if left <= 0:
            break
        covering.append(character)
        left -= count
    return covering


def restricted_lines(lines: Sequence[str], alphabet: set[str]) -> Iterator[str]:
    """The lines with every character outside `alphabet` made a break."""
    dropped = {ord(character): "\n" for line in lines for character in set(line) - alphabet}
    return (line.translate(dropped) for line in lines) if dropped.keys() - {ord("\n")} else iter(lines)


def train_merges(lines: Iterable[str], alphabet: Sequence[str], num_merges: int) -> list[tuple[str, str]]:
    """At most `num_merges` merges, most frequent first, over words parted by newlines; symbols are single characters.

    Fewer come back where no pair is met twice. The result depends on the multiset of words only.
    """
    if num_merges <= 0:
        return []
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "removed")
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + num_merges,
        min_frequency=_MIN_COUNT,
        initial_alphabet=list(alphabet),
        limit_alphabet=len(alphabet),
        max_token_length=MAX_PIECE_LENGTH,
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(lines), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(left, right) for left, right in merges]
