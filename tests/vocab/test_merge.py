"""Joining pieces: nothing old moves or changes, nothing new is out of reach; the published file to the byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from yangtuo.errors import VocabularyError
from yangtuo.vocab.directory import write_sentencepiece
from yangtuo.vocab.encoding import load_encoder
from yangtuo.vocab.learn import sentencepiece_pieces
from yangtuo.vocab.merge import lowest_score, merge_faithful, merge_published, ordered_pieces
from yangtuo.vocab.scripts import compile_scripts
from yangtuo.vocab.sentencepiece_model import CONTROL, load_processor, parse_model, read_model

from .texts import AWKWARD, assert_same_ids, random_texts

HAN = compile_scripts(["Han"])
PUBLISHED = "e2676d4ca29ca1750f6ff203328d73b189321dc5776ceede037cbd36541d70c0"


def test_published_files_are_reproduced_byte_for_byte(shared_data: Path) -> None:
    base = read_model(shared_data / "tokenizers/llama/tokenizer.model")
    pieces = read_model(shared_data / "tokenizers/chinese_sp.model")
    merged = merge_published(base, pieces, [])
    assert hashlib.sha256(merged.model).hexdigest() == PUBLISHED
    with_pad = parse_model(merge_published(base, pieces, ["[PAD]"]).model, "alpaca")
    assert len(with_pad.pieces) == 49_954
    last = with_pad.pieces[-1]
    assert (last.piece, last.score, last.HasField("type")) == ("[PAD]", 0.0, False)


def test_faithful_merge_changes_nothing_old(pico_sentencepiece: bytes, tmp_path: Path) -> None:
    base = parse_model(pico_sentencepiece, "pico")
    wanted = ["小镇", "河", "流过", "10", "\u2581小", "th", "，", "的人"]
    merged = merge_faithful(base, wanted, HAN, ["<|user|>"])
    model = parse_model(merged.model, "merged")
    old = [(piece.piece, piece.score, piece.type) for piece in base.pieces]
    assert [(piece.piece, piece.score, piece.type) for piece in model.pieces][: len(old)] == old
    new = model.pieces[len(old) :]
    assert new[-1].piece == "<|user|>" and new[-1].type == CONTROL
    scores = [piece.score for piece in new[:-1]]
    assert len(set(scores)) == len(scores) and max(scores) < lowest_score(base)
    assert merged.out_of_script == ["10", "\u2581小", "th"]
    assert merged.closed == [one for one in "小镇流过的人" if one not in {piece.piece for piece in base.pieces}]
    processor = load_processor(model, prefix=False)
    assert all(len(processor.encode(piece)) == 1 for piece in merged.added)
    before, after = load_processor(base), load_processor(model)
    english = [text for text in AWKWARD + random_texts(2, 500) if not HAN.own.search(text)]
    assert before.encode(english) == after.encode(english)
    write_sentencepiece(tmp_path, merged.model)
    assert_same_ids(tmp_path, [*AWKWARD, "小镇的人，流过的河10 th"])
    assert load_encoder(tmp_path).control_id("<|user|>") == len(model.pieces) - 1


def test_a_piece_without_its_intermediates_gets_them(pico_sentencepiece: bytes) -> None:
    """中华人民 cannot be merged out of 中 华 人 民 unless some pair of them is a piece."""
    base = parse_model(pico_sentencepiece, "pico")
    merged = merge_faithful(base, ["中华人民", "华人"], HAN, [])
    processor = load_processor(parse_model(merged.model, "merged"), prefix=False)
    assert len(processor.encode("中华人民")) == 1 and len(processor.encode("华人")) == 1
    assert not merged.unreachable and {"中华人民", "华人"} <= set(merged.added)
    assert set(merged.closed) <= set(merged.added) - {"中华人民", "华人"}


def test_real_pieces_are_all_reachable_and_digits_stay(shared_data: Path, tmp_path: Path) -> None:
    base = read_model(shared_data / "tokenizers/llama/tokenizer.model")
    pieces = read_model(shared_data / "tokenizers/chinese_sp.model")
    merged = merge_faithful(base, ordered_pieces(pieces), HAN, [])
    model = parse_model(merged.model, "merged")
    processor = load_processor(model, prefix=False)
    assert not [piece for piece in merged.added if len(processor.encode(piece)) != 1]
    own = load_processor(base, prefix=False)
    reached = [piece.piece for piece in base.pieces if piece.type == 1 and len(own.encode(piece.piece)) == 1]
    assert not [piece for piece in reached if len(processor.encode(piece)) != 1], "pieces of the base that are lost"
    assert "10" in merged.out_of_script and not any(
        character.isdigit() for piece in merged.added for character in piece
    )
    write_sentencepiece(tmp_path, merged.model)
    text = (shared_data / "corpora/zh/README.txt") if (shared_data / "corpora/zh/README.txt").is_file() else None
    files = [text] if text else sorted((shared_data / "corpora/zh").glob("*.txt"))[:4]
    lines = [line for file in files for line in file.read_text(encoding="utf-8", errors="ignore").split("\n")[:500]]
    assert_same_ids(tmp_path, AWKWARD + lines)


def test_pieces_and_tokens_that_exist_already_are_refused(pico_sentencepiece: bytes) -> None:
    base = parse_model(pico_sentencepiece, "pico")
    with pytest.raises(VocabularyError, match=r"special tokens(.|\n)*</s>"):
        merge_faithful(base, ["小镇", "</s>"], HAN, [])
    with pytest.raises(VocabularyError, match="exist already"):
        merge_faithful(base, ["小镇"], HAN, ["<s>"])
    with pytest.raises(VocabularyError, match="exist already"):
        merge_published(base, parse_model(sentencepiece_pieces(["小"]), "pieces"), ["<s>"])


def test_learned_pieces_survive_their_file() -> None:
    pieces = ["小", "镇", "小镇", "，"]
    assert ordered_pieces(parse_model(sentencepiece_pieces(pieces), "pieces")) == pieces
