"""Learning new pieces: byte-pair encoding (Sennrich et al. 2016) continued where a base tokenizer ends.

The base's own pieces are the first symbols, so every learned piece is reachable by merges once the base's are done.
The counting is done by Hugging Face's trainer, over one private character a symbol. Knows no files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from yangtuo.errors import VocabularyError
from yangtuo.vocab.scripts import BLANK, Scripts
from yangtuo.vocab.sentencepiece_model import NORMAL

CHARACTER_COVERAGE = 0.9995
"""Share of the text's characters that get a piece of their own; the rare rest stays bytes."""
MAX_PIECE_LENGTH = 16
_MIN_COUNT = 2


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
    lines, counts = _script_lines(texts, scripts)
    if not counts:
        raise _no_script(scripts)
    characters = _covering(counts)
    min_count = _MIN_COUNT
    new = [character for character in characters if character not in known]
    learned = _learn(lines, characters, new, known, size, min_count)
    # A character saves two tokens each time it is met, a merge one: where characters crowd the merges out, both
    # are held to the same gain.
    while len(new) > size // 2 and len(learned) >= size:
        characters = [one for one in characters if 2 * counts[one] > min_count + 1 or one in known]
        kept = [one for one in characters if one not in known]
        stricter = _learn(lines, characters, kept, known, size, min_count + 1)
        if len(stricter) < size:
            break
        min_count, new, learned = min_count + 1, kept, stricter
    if len(learned) < size:
        raise too_few(size, len(learned))
    pieces = learned[:size]
    return Learned(pieces, sum(len(piece) == 1 for piece in pieces))


def _learn(
    lines: Sequence[str], characters: Sequence[str], new: Sequence[str], known: set[str], size: int, min_count: int
) -> list[str]:
    merges = train_merges(_restricted(lines, set(characters)), characters, max(size - len(new), 0), min_count)
    products = dict.fromkeys(left + right for left, right in merges)
    return [*new, *(piece for piece in products if piece not in known)]


def _script_lines(texts: Iterable[str], scripts: Scripts) -> tuple[list[str], Counter[str]]:
    lines: list[str] = []
    counts: Counter[str] = Counter()
    for text in texts:
        line = "\n".join(scripts.runs(text)).replace(" ", BLANK)
        if line:
            lines.append(line)
            counts.update(line)
    del counts["\n"]
    return lines, counts


def _covering(counts: Counter[str]) -> list[str]:
    """The most frequent characters that make up the wanted share of all, in that order."""
    left = CHARACTER_COVERAGE * counts.total()
    covering: list[str] = []
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if left <= 0:
            break
        covering.append(character)
        left -= count
    return covering


def _restricted(lines: Sequence[str], alphabet: set[str]) -> Iterator[str]:
    """The lines with every character outside `alphabet` made a break."""
    dropped = {ord(character): "\n" for line in lines for character in set(line) - alphabet}
    return (line.translate(dropped) for line in lines) if dropped.keys() - {ord("\n")} else iter(lines)


def train_merges(
    lines: Iterable[str], alphabet: Sequence[str], num_merges: int, min_count: int
) -> list[tuple[str, str]]:
    """At most `num_merges` merges, most frequent first, over words parted by newlines; symbols are single characters.

    Fewer come back where no pair is met `min_count` times. The result depends on the multiset of words only.
    """
    if num_merges == 0:
        return []
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "removed")
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + num_merges,
        min_frequency=min_count,
        initial_alphabet=list(alphabet),
        limit_alphabet=len(alphabet),
        max_token_length=MAX_PIECE_LENGTH,
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(lines), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(left, right) for left, right in merges]


def too_few(size: int, held: int) -> VocabularyError:
    """The error for a corpus that does not hold `size` pieces."""
    return VocabularyError(
        f"the corpus does not hold {size:,} new pieces",
        found=f"{held:,} pieces that occur at least twice",
        expected="a larger corpus, or a smaller --size",
        run=f"the same command with --size {max(held // 100 * 100, 1)}",
    )


def _no_script(scripts: Scripts) -> VocabularyError:
    return VocabularyError(
        f"the corpus holds no text in {' or '.join(scripts.names)}",
        found="no character of that script",
        expected="text in the language to learn, or another --script",
    )
