"""Learning new pieces: byte-pair encoding (Sennrich et al. 2016) continued where a base tokenizer ends.

The base's own pieces are the first symbols, so every learned piece is reachable by merges once the base's are done.
The counting is done by SentencePiece's trainer, over one character a symbol. Knows no files.
"""

from __future__ import annotations

import io
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from yangtuo.errors import VocabularyError
from yangtuo.vocab.engines import Engine, MergingEngine, SentencePieceEngine
from yangtuo.vocab.merge import extend, outward
from yangtuo.vocab.scripts import BLANK, Scripts
from yangtuo.vocab.sentencepiece_model import NORMAL, UNKNOWN, load_processor, parse_model

CHARACTER_COVERAGE = 0.9995
"""Share of the text's characters that get a piece of their own; the rare rest stays bytes."""
MAX_PIECE_LENGTH = 16
_MIN_COUNT = 2
_SPARE = 64  # merges learned beyond the wanted, for some give pieces that the base has and cannot reach
_FIRST_SYMBOL = 0xF0000  # private characters stand for pieces while merges are counted
_CHARACTER_SHARE = 0.6  # of the new pieces, where words are left to learn

_LEAST_BLOCK = 500  # characters between two places where a text is divided
_DIVISION = 10  # of so many blocks one chooses pieces and one is reported on
_BLOCK = 1 << 15
_LONGEST_BLOCK = 60_000  # characters; SentencePiece's trainer counts positions in 16 bits


@dataclass(frozen=True)
class Learned:
    """New pieces in the order of their merging, single characters first."""

    pieces: list[str]
    num_characters: int
    """How many of `pieces` are single characters."""


@dataclass(frozen=True)
class Candidate:
    """A piece that may be added, and the two that it is merged of; a single character has none."""

    piece: str
    parts: tuple[str, ...] = ()


def divide_texts(texts: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
    """Text to learn from, a tenth to choose pieces by, and a tenth to report on, cut at line ends.

    What is too short to be divided is all in the first, and again in the last.
    """
    blocks: list[str] = []
    for text in texts:
        start = 0
        while start < len(text):
            end = text.find("\n", start + _LEAST_BLOCK) + 1 or len(text)
            blocks.append(text[start:end])
            start = end
    if len(blocks) < 2 * _DIVISION:
        return blocks, [], blocks
    learned = [block for number, block in enumerate(blocks) if number % _DIVISION not in (4, 9)]
    return learned, blocks[4::_DIVISION], blocks[9::_DIVISION]


def learn_pieces(base: Any, texts: Iterable[str], size: int, scripts: Scripts, held_out: Sequence[str] = ()) -> Learned:
    """Learns `size` pieces of `scripts` for the SentencePiece BPE model `base` from `texts`.

    Pieces that `held_out` does not use give way to others. Raises `VocabularyError` where the texts hold fewer.
    """
    known = {piece.piece for piece in base.pieces if piece.type == NORMAL}
    lines, counts = script_lines(texts, scripts, blank=BLANK)
    # A character that others write, too, is joined only where the base has it as a piece.
    alphabet = {
        character for character in counts if character in known or character == BLANK or scripts.own.match(character)
    }
    apart = [character for character in covering_characters(counts) if character not in known and character in alphabet]
    # What English shares with the script is merged already, and must not be merged anew.
    begun = "Latin" in scripts.names or any(len(piece) > 1 and scripts.accepts(piece) for piece in known)

    def learn(new: Sequence[str]) -> list[Candidate]:
        num_merges = _with_spare(size, held_out) - len(new)
        if begun:
            kept = restricted_lines(lines, counts.keys() - alphabet)
            merges = _continue(base, new, list(kept), scripts, num_merges)
        else:
            joined = alphabet & (known | set(new))
            products = train_pieces(restricted_lines(lines, counts.keys() - joined), len(joined), num_merges)
            merges = split_pieces(products)
        return [*map(Candidate, new), *_products(merges, known)]

    candidates = learn_within(size, apart, learn)
    if held_out:
        engine = SentencePieceEngine(extend(base, [candidate.piece for candidate in candidates]), {})
        candidates = earned(candidates, size, used_candidates(engine, held_out, len(base.pieces), candidates))
    pieces = [candidate.piece for candidate in candidates[:size]]
    return Learned(pieces, sum(len(piece) == 1 for piece in pieces))


def _continue(
    base: Any, characters: Sequence[str], lines: Sequence[str], scripts: Scripts, num_merges: int
) -> list[tuple[str, str]]:
    """Merges after those of a `base` that has words in the scripts already."""
    model = extend(base, characters)
    model.normalizer_spec.add_dummy_prefix = False
    usable = {
        index: piece.piece
        for index, piece in enumerate(model.pieces)
        if piece.type == NORMAL and scripts.stands_in(piece.piece)
    }
    return continue_merges(SentencePieceEngine(model, {}), usable, lines, num_merges, scripts.accepts)


def _products(merges: Iterable[tuple[str, str]], known: Collection[str]) -> list[Candidate]:
    """What the merges make, once each, without what the base has."""
    products: dict[str, Candidate] = {}
    for left, right in merges:
        if left + right not in known:
            products.setdefault(left + right, Candidate(left + right, (left, right)))
    return list(products.values())


def used_candidates(engine: Engine, texts: Sequence[str], base_size: int, candidates: Sequence[Candidate]) -> set[str]:
    """The candidates, whose ids follow the base's, that `texts` are cut into."""
    lines = [line for text in texts for line in text.split("\n") if line]
    ids = {index for line in engine.encode_batch(lines, None) for index in line if index >= base_size}
    return {candidate.piece for index, candidate in enumerate(candidates, base_size) if index in ids}


def earned(candidates: list[Candidate], size: int, used: set[str]) -> list[Candidate]:
    """The first `size` candidates that are `used`, or parts of such; others only where these are too few."""
    parts = {candidate.piece: candidate.parts for candidate in candidates}
    kept: set[str] = set()
    waiting = list(used)
    while waiting:
        piece = waiting.pop()
        if piece in parts and piece not in kept:
            kept.add(piece)
            waiting += parts[piece]
    for candidate in candidates:
        if len(kept) >= size:
            break
        kept.add(candidate.piece)
    return [candidate for candidate in candidates if candidate.piece in kept][:size]


def _with_spare(size: int, held_out: Sequence[str]) -> int:
    return size + size // 2 if held_out else size


def learn_within(
    size: int, characters: Sequence[str], learn: Callable[[Sequence[str]], list[Candidate]]
) -> list[Candidate]:
    """What `learn(characters)` gives, at least `size`, for only as many `characters` as leave room for words.

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
            run=f"the same command with --size {len(learned) // 100 * 100 or len(learned)}" if learned else None,
        )
    return learned


def cut_blocks(line: str) -> Iterator[str]:
    """Parts of about 32,000 characters, cut at newlines; where there are none for long, anywhere."""
    start = 0
    while start < len(line):
        end = line.find("\n", start + _BLOCK, start + _LONGEST_BLOCK)
        end = start + _LONGEST_BLOCK if end < 0 else end
        yield line[start:end]
        start = end


def script_lines(texts: Iterable[str], scripts: Scripts, *, blank: str) -> tuple[list[str], Counter[str]]:
    """The runs of `scripts` in each text, parted by newlines, and how often each character is met.

    Blanks at the head of runs are written as `blank`. Raises `VocabularyError` where there is no such text.
    """
    lines: list[str] = []
    totals = np.zeros(0x110000, np.int64)
    for text in texts:
        line = "\n".join(scripts.runs(text)).replace(" ", blank)
        if line:
            lines.append(line)
            occurrences = np.bincount(np.frombuffer(line.encode("utf-32-le"), np.uint32))
            totals[: len(occurrences)] += occurrences
    totals[ord("\n")] = 0
    counts = Counter({chr(code): int(totals[code]) for code in totals.nonzero()[0]})
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


def restricted_lines(lines: Sequence[str], dropped: Iterable[str]) -> Iterator[str]:
    """The lines with every `dropped` character made a break."""
    characters = "".join(dropped)
    if not characters:
        return iter(lines)
    pattern = re.compile(f"[{re.escape(characters)}]")
    return (pattern.sub("\n", line) for line in lines)


def continue_merges(
    engine: MergingEngine,
    pieces: Mapping[int, str],
    lines: Sequence[str],
    num_merges: int,
    accepts: Callable[[str], bool],
) -> list[tuple[str, str]]:
    """At least `num_merges` merges where there are so many, after those of `engine`, of what it cuts `lines` into.

    Only `pieces` (id -> text) take part; what is cut into others is a break, as is where the engine parts words.
    Every product is accepted: a piece that was trained from others that are not is built outward of its accepted part.
    """
    symbols = {index: chr(_FIRST_SYMBOL + rank) for rank, index in enumerate(pieces)}
    texts = {symbols[index]: piece for index, piece in pieces.items()}
    blocks = [block for line in lines for block in cut_blocks(line)]

    def spelled() -> Iterator[str]:
        for start in range(0, len(blocks), 64):
            for words in engine.encode_words(blocks[start : start + 64]):
                yield "\n".join("".join(symbols.get(index, "\n") for index in word) for word in words)

    def text(part: str) -> str:
        return "".join(texts[character] for character in part)

    merges: dict[tuple[str, str], int] = {}
    trained = train_pieces(spelled(), len(pieces), num_merges + _SPARE if num_merges > 0 else 0)
    for piece in trained:
        parts = _merged(list(piece), merges)
        if not accepts(text(piece)):
            continue
        for left, right in outward(parts, lambda part: accepts(text(part))):
            merges[left, right] = len(merges)
    return [(text(left), text(right)) for left, right in merges]


def train_pieces(lines: Iterable[str], num_symbols: int, num_pieces: int) -> list[str]:
    """At most `num_pieces` pieces, first merge first, of words parted by newlines, in at most `num_symbols` characters.

    Fewer come back where no pair is met twice. The result depends on the multiset of words only.
    """
    blocks = [block for line in lines for block in cut_blocks(line) if block.strip("\n")]
    if num_pieces <= 0 or not blocks:
        return []
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(blocks),
        model_writer=model,
        model_type="bpe",
        vocab_size=1 + num_symbols + num_pieces,
        hard_vocab_limit=False,
        pretokenization_delimiter="\n",
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_unicode_script=False,
        split_by_number=False,
        character_coverage=1.0,
        max_sentencepiece_length=MAX_PIECE_LENGTH,
        max_sentence_length=4 * _LONGEST_BLOCK,
        bos_id=-1,
        eos_id=-1,
        num_threads=2,
        minloglevel=2,
    )
    learned = parse_model(model.getvalue(), "learned pieces")
    pieces = [piece.piece for piece in learned.pieces if len(piece.piece) > 1 and piece.type == NORMAL][:num_pieces]

    def is_rare(rank: int) -> bool:
        return not _occurs_twice(learned, pieces[:rank], blocks)

    # The trainer goes on to pairs that no text is left with; frequencies fall, so the last one tells of all.
    if not pieces or not is_rare(len(pieces)):
        return pieces
    return pieces[: bisect_left(range(1, len(pieces) + 1), True, key=is_rare)]


def _occurs_twice(learned: Any, pieces: Sequence[str], blocks: Sequence[str]) -> bool:
    """Whether the last of `pieces` is met twice when all of them are merged in `blocks`; stops at the second."""
    model = type(learned)()
    model.CopyFrom(learned)
    kept = set(pieces)
    del model.pieces[:]
    model.pieces.extend(
        piece for piece in learned.pieces if piece.type != NORMAL or len(piece.piece) == 1 or piece.piece in kept
    )
    processor, count = load_processor(model), 0
    for block in blocks:
        words = [word for word in block.split("\n") if pieces[-1] in word] if pieces[-1] in block else []
        count += sum(parts.count(pieces[-1]) for parts in processor.encode(words, out_type=str))
        if count >= _MIN_COUNT:
            return True
    return False


def split_pieces(pieces: Sequence[str]) -> list[tuple[str, str]]:
    """The two parts that each piece was merged of: what the merges before it make of its characters."""
    merges: dict[tuple[str, str], int] = {}
    for piece in pieces:
        left, right = _merged(list(piece), merges)
        merges[left, right] = len(merges)
    return list(merges)


def _merged(parts: list[str], merges: Mapping[tuple[str, str], int]) -> list[str]:
    """What `merges` (pair -> rank) make of `parts`; the best pair first, of equal ones the leftmost."""
    while len(parts) > 1:
        rank, at = min((merges.get(pair, len(merges)), at) for at, pair in enumerate(pairwise(parts)))
        if rank == len(merges):
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def sentencepiece_pieces(pieces: Sequence[str]) -> bytes:
    """A serialized BPE model of `pieces`, best first: the first gets score -1, the next -2, and so on."""
    model = sentencepiece_model_pb2.ModelProto()
    model.pieces.add(piece="<unk>", score=0.0, type=UNKNOWN)
    for rank, piece in enumerate(pieces, 1):
        model.pieces.add(piece=piece, score=-rank, type=NORMAL)
    trainer = model.trainer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(model.pieces)
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = 0, -1, -1, -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    return bytes(model.SerializeToString())
