"""Learning pieces: as many as asked for, the frequent ones, the same every time."""

from __future__ import annotations

import pytest

from yangtuo.errors import VocabularyError
from yangtuo.vocab.learn import (
    Candidate,
    covering_characters,
    divide_texts,
    earned,
    learn_pieces,
    script_lines,
    split_pieces,
    train_pieces,
)
from yangtuo.vocab.merge import merge_faithful
from yangtuo.vocab.scripts import compile_scripts
from yangtuo.vocab.sentencepiece_model import load_processor, parse_model

HAN = compile_scripts(["Han"])
TEXTS = ["小河流过小镇，小镇的人爱小河。", "小镇的人说：小河流过小镇。", "abc 人爱小镇，小镇爱人。123"] * 4


def test_merges_are_byte_pair_encoding() -> None:
    """Counts by hand: ab 5 times, then (ab)c 3 times; d never occurs twice beside the same neighbour."""
    lines = ["abc\nabc\nabc", "ab\nab\nd"]
    assert train_pieces(lines, 4, 10) == ["ab", "abc"]
    assert train_pieces(lines, 4, 1) == ["ab"]
    assert train_pieces(lines, 4, 0) == train_pieces(["\n\n"], 4, 5) == []
    assert split_pieces(["ab", "cd", "abcd", "aba", "bb"]) == [
        *zip(["a", "c", "ab", "ab", "b"], ["b", "d", "cd", "a", "b"], strict=True)
    ]
    assert train_pieces(["ab" * 50_000], 2, 3) == ["ab", "abab", "abababab"], "longer than SentencePiece can count"


def test_frequent_pieces_are_learned_and_known_ones_are_not(pico_sentencepiece: bytes) -> None:
    base = parse_model(pico_sentencepiece, "pico")
    known = {piece.piece for piece in base.pieces}
    learned = learn_pieces(base, TEXTS, 16, HAN)
    assert len(learned.pieces) == len(set(learned.pieces)) == 16
    assert {"小镇", "小河"} <= set(learned.pieces)
    assert not known & set(learned.pieces) and all(HAN.accepts(piece) for piece in learned.pieces)
    assert learned.num_characters == sum(len(piece) == 1 for piece in learned.pieces)
    assert learn_pieces(base, TEXTS, 16, HAN) == learned
    assert set(learn_pieces(base, reversed(TEXTS), 16, HAN).pieces) == set(learned.pieces)


def test_a_base_that_has_words_is_continued(pico_sentencepiece: bytes) -> None:
    """Pieces learned past the base's own words would need intermediates, or never be reached."""
    base = parse_model(pico_sentencepiece, "pico")
    first = merge_faithful(base, learn_pieces(base, TEXTS, 16, HAN).pieces, HAN, [])
    grown = parse_model(first.model, "grown")
    learned = learn_pieces(grown, TEXTS, 5, HAN)
    assert not set(learned.pieces) & set(first.added) and len(learned.pieces) == 5
    second = merge_faithful(grown, learned.pieces, HAN, [])
    assert second.added == learned.pieces and not second.closed and not second.unreachable
    processors = [load_processor(parse_model(one.model, "merged")) for one in (first, second)]
    tokens = [sum(map(len, processor.encode(TEXTS))) for processor in processors]
    assert tokens[1] < tokens[0]


def test_words_of_spaced_scripts_carry_their_blank(pico_sentencepiece: bytes) -> None:
    base, cyrillic = parse_model(pico_sentencepiece, "pico"), compile_scripts(["Cyrillic"])
    learned = learn_pieces(base, ["мама мыла раму, мама пела. " * 5], 20, cyrillic)
    assert {"\u2581мама", "\u2581пела"} & set(learned.pieces)
    merged = merge_faithful(base, learned.pieces, cyrillic, [])
    assert merged.added == learned.pieces and not merged.unreachable


def test_rare_characters_give_way_to_frequent_merges(pico_sentencepiece: bytes) -> None:
    """A small budget must not be spent on characters met once while common words stay in bytes."""
    base = parse_model(pico_sentencepiece, "pico")
    rare = "".join(chr(code) for code in range(0x5000, 0x5040))
    learned = learn_pieces(base, [*TEXTS * 5, "，".join(rare)], 20, HAN)
    assert "小镇" in learned.pieces and not set(rare) & set(learned.pieces)


def test_a_corpus_that_holds_less_is_refused_with_the_figure(pico_sentencepiece: bytes) -> None:
    base = parse_model(pico_sentencepiece, "pico")
    with pytest.raises(VocabularyError, match=r"does not hold 5,000(.|\n)*found: +\d+ pieces"):
        learn_pieces(base, TEXTS, 5000, HAN)
    with pytest.raises(VocabularyError, match="no text in Han"):
        learn_pieces(base, ["only English, 123"], 5, HAN)


def test_coverage_leaves_out_the_rarest() -> None:
    lines, counts = script_lines(["的" * 4000 + "一" * 10, "鑫"], HAN, blank="\u2581")
    assert lines == ["的" * 4000 + "一" * 10, "鑫"]
    assert covering_characters(counts) == ["的", "一"]


def test_pieces_are_earned_on_text_that_was_not_learned_from(pico_sentencepiece: bytes) -> None:
    """A piece that held-out text does not use gives way to others; what used ones are made of stays."""
    ab, cd, abcd, ef = (Candidate(piece, parts) for piece, parts in (
        ("ab", ("a", "b")), ("cd", ("c", "d")), ("abcd", ("ab", "cd")), ("ef", ("e", "f"))))  # fmt: skip
    assert earned([ab, ef, cd, abcd], 3, {"abcd"}) == [ab, cd, abcd]
    assert earned([ab, ef, cd, abcd], 4, {"abcd"}) == [ab, ef, cd, abcd], "too few are used: others fill up"
    assert earned([ab, ef, cd, abcd], 1, {"ef"}) == [ef]
    base = parse_model(pico_sentencepiece, "pico")
    learned = learn_pieces(base, ["小镇鑫河。小镇鑫河。" * 50, *TEXTS * 5], 13, HAN, held_out=TEXTS)
    merged = merge_faithful(base, learned.pieces, HAN, [])
    assert merged.added == learned.pieces and len(merged.added) == 13 and not merged.unreachable


def test_latin_words_are_built_outward_of_what_english_lacks(pico_sentencepiece: bytes) -> None:
    """No piece, not even one that others are made of, is of English letters alone: English stays as it was."""
    base, latin = parse_model(pico_sentencepiece, "pico"), compile_scripts(["Latin"])
    learned = learn_pieces(
        base, ["không biết người nhiều nhiều không người " * 9, "the end of the river " * 50], 14, latin
    )
    assert all(any(not one.isascii() for one in piece.replace("\u2581", "")) for piece in learned.pieces)
    merged = merge_faithful(base, learned.pieces, latin, [])
    assert merged.added == learned.pieces
    new = load_processor(parse_model(merged.model, "merged"))
    old = load_processor(base)
    assert 2 * len(new.encode("không người")) < len(old.encode("không người"))
    assert new.encode("the end of the river") == old.encode("the end of the river")


def test_a_text_is_divided_at_line_ends_and_nothing_is_lost() -> None:
    text = "".join(f"line {number} of a text that is long enough to be divided\n" for number in range(400))
    learned, select, report = divide_texts([text])
    assert len(text) == sum(map(len, learned + select + report)) and len(select) == len(report) > 3
    assert not set(select) & set(learned) and all(block.endswith("\n") for block in learned)
    assert divide_texts(["short"]) == (["short"], [], ["short"])
