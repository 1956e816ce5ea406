"""Learning new pieces: byte-pair encoding (Sennrich et al. 2016) continued where a base tokenizer ends.

The base's own pieces are the first symbols, so every learned piece is reachable by merges once the base's are done.
The counting is done by Hugging Face's trainer, over one private character a symbol. Knows no files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
_SAMPLE = 1_000_000  # characters on which characters are weighed against merges
_BLOCK = 1 << 15

Item = TypeVar("Item")


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
    # A character without a piece is three bytes in the scripts that matter here, so a piece saves two tokens.
    gains = {one: 0 if one in known else 2 * counts[one] for one in covering_characters(counts)}

    def learn(some: Sequence[str], characters: Sequence[str], min_count: int) -> list[str]:
        new = [one for one in characters if one not in known]
        wanted = max(size - len(new), 0)
        merges = train_merges(_restricted(some, set(characters)), characters, wanted, min_count)
        products = dict.fromkeys(left + right for left, right in merges)
        return [*new, *(piece for piece in products if piece not in known)]

    pieces = balanced(size, gains, lines, learn)
    return Learned(pieces, sum(len(piece) == 1 for piece in pieces))


def balanced(
    size: int,
    gains: Mapping[str, int],
    lines: Sequence[str],
    learn: Callable[[Sequence[str], Sequence[str], int], list[Item]],
) -> list[Item]:
    """The first `size` items of `learn(lines, characters, min_count)`, characters and merges held to one gain.

    `gains` has the tokens that a piece for a character would save, most frequent character first, 0 where the base
    has one. Where new characters take more than half of `size`, rare ones are given up together with rare merges;
    how many, is found on a sample. Raises `VocabularyError` where even the most generous choice is too small.
    """
    characters = list(gains)
    if sum(gain > 0 for gain in gains.values()) > size // 2:
        sample, fraction = _sample(lines)

        def chosen(min_gain: int) -> list[str]:
            return [one for one in characters if gains[one] == 0 or gains[one] * fraction >= min_gain]

        low, high = _MIN_COUNT, 2 * _MIN_COUNT
        while len(learn(sample, chosen(high), high)) >= size:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            if len(learn(sample, chosen(middle), middle)) >= size:
                low = middle
            else:
                high = middle
        characters = chosen(low)
    learned = learn(lines, characters, _MIN_COUNT)
    if len(learned) < size:
        learned = learn(lines, list(gains), _MIN_COUNT)
    if len(learned) < size:
        raise _too_few(size, len(learned))
    return learned[:size]


def _sample(lines: Sequence[str]) -> tuple[list[str], float]:
    """Evenly spread parts of the lines, and the share of all characters that they hold."""
    total = sum(map(len, lines))
    if total <= _SAMPLE:
        return list(lines), 1.0
    blocks = [block for line in lines for block in cut_blocks(line)]
    taken = blocks[:: -(-total // _SAMPLE)]
    return taken, sum(map(len, taken)) / total


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


def _too_few(size: int, held: int) -> VocabularyError:
    return VocabularyError(
        f"the corpus does not hold {size:,} new pieces",
        found=f"{held:,} pieces that occur at least twice",
        expected="a larger corpus, or a smaller --size",
        run=f"the same command with --size {max(held // 100 * 100, 1)}",
    )
