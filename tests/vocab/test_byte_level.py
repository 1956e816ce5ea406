"""Byte-level bases: merges continue where the base ends, and text of other scripts cannot tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import regex
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from yangtuo.errors import VocabularyError
from yangtuo.vocab.byte_level import (
    chars_per_word,
    learn_merges,
    merge_byte_level,
    piece_bytes,
    require_byte_level,
    to_byte_level,
    widen,
)
from yangtuo.vocab.directory import read_directory, write_byte_level
from yangtuo.vocab.encoding import load_encoder
from yangtuo.vocab.engines import FastEngine
from yangtuo.vocab.scripts import compile_scripts

from .merge_by_merge import merge_by_merge
from .texts import AWKWARD, random_texts

HAN = compile_scripts(["Han"])
TEXTS = ["小河流过小镇，小镇的人爱小河。", "小镇的人说：小河流过小镇。", "abc 人爱小镇，小镇爱人。123"] * 4


def test_spelling_is_gpt2s() -> None:
    assert to_byte_level("a é\n") == "aĠÃ©Ċ"
    assert piece_bytes(to_byte_level("你好")) == "你好".encode()
    assert piece_bytes("<|你|>") == "<|你|>".encode()


def test_new_merges_shorten_chinese_and_leave_all_else(pico_byte_level: Path, tmp_path: Path) -> None:
    base = read_directory(pico_byte_level / "tokenizer.json").content
    learned = learn_merges(base, TEXTS, 30, HAN)
    assert len(learned.merges) == 30 and learn_merges(base, TEXTS, 30, HAN) == learned
    merged = merge_byte_level(base, learned.merges, HAN, ["<|extra|>"])
    assert "小镇" in merged.added and not merged.out_of_script and not merged.unreachable
    write_byte_level(tmp_path, merged.content, {"eos_token": "<|im_end|>"})
    old, new = load_encoder(pico_byte_level), load_encoder(tmp_path)
    assert new.pieces[: old.vocabulary_size] == old.pieces and new.vocabulary_size == 400 + 30 + 1
    assert new.control_id("<|extra|>") == 430
    other = [text for text in AWKWARD + random_texts(3, 500) if not HAN.own.search(text)] + [
        "“quotes” — …",
        "かな",
    ]
    assert new.encode_batch(other) == old.encode_batch(other)
    for text in TEXTS:
        assert new.decode(new.encode(text)) == text
        assert 2 * len(new.encode(text)) < len(old.encode(text))
    assert merge_by_merge(merged.content)(TEXTS + other) == new.encode_batch(TEXTS + other)
    fast = AutoTokenizer.from_pretrained(tmp_path)
    assert fast(TEXTS, add_special_tokens=False).input_ids == new.encode_batch(TEXTS)
    assert fast.convert_tokens_to_ids("<|extra|>") == 430


def test_ids_of_tokens_behind_the_models_own_do_not_move(shared_data: Path, tmp_path: Path) -> None:
    """Llama 3 keeps its special tokens at 128,000 to 128,255; loaders number them anew unless told."""
    base = read_directory(shared_data / "tokenizers/llama3/tokenizer.json").content
    merged = merge_byte_level(base, [(to_byte_level("中国"), to_byte_level("人民"))], HAN, ["<|extra|>"])
    write_byte_level(tmp_path, merged.content, {})
    fast = AutoTokenizer.from_pretrained(tmp_path)
    assert fast.convert_tokens_to_ids(["<|eot_id|>", "<|extra|>"]) == [128_009, 128_257]
    assert load_encoder(tmp_path).encode("中国人民") == [128_256]


def test_a_character_that_shares_its_first_bytes_with_other_scripts_stays_apart(pico_byte_level: Path) -> None:
    """U+FF5E begins as full-width letters do: two pieces for it would cut those otherwise, or be left out unsaid."""
    base = read_directory(pico_byte_level / "tokenizer.json").content
    learned = learn_merges(base, [*TEXTS, "小镇～～～小河～"] * 4, 30, HAN)
    merged = merge_byte_level(base, learned.merges, HAN, [])
    assert len(merged.added) == 30 and not merged.out_of_script
    assert all("～" not in piece for piece in merged.added)


def test_merges_of_other_scripts_are_left_out_with_what_is_built_on_them(pico_byte_level: Path) -> None:
    base = read_directory(pico_byte_level / "tokenizer.json").content
    merges = [("x", "q"), ("xq", "z"), *learn_merges(base, TEXTS, 10, HAN).merges]
    merged = merge_byte_level(base, merges, HAN, [])
    assert merged.out_of_script == ["xq", "xqz"] and len(merged.added) == 10


def test_merges_for_another_base_are_refused(pico_byte_level: Path) -> None:
    base = read_directory(pico_byte_level / "tokenizer.json").content
    with pytest.raises(VocabularyError, match="another base"):
        merge_byte_level(base, [(to_byte_level("鑫"), to_byte_level("鑫"))], HAN, [])
    with pytest.raises(VocabularyError, match="existing tokens"):
        merge_byte_level(base, [], HAN, ["<|im_end|>"])


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram", "WordLevel"])
def test_tokenizers_that_do_not_merge_bytes_are_refused(pico_byte_level: Path, tmp_path: Path, kind: str) -> None:
    content = json.loads((pico_byte_level / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["type"] = kind
    with pytest.raises(VocabularyError, match=kind):
        require_byte_level(content, str(tmp_path))


HINDI = ["हिन्दी में लिखी किताबें पढ़ना अच्छा लगता है। ", "गाँव के बच्चे नदी के किनारे खेलते हैं। ", "किताबें पढ़ना और लिखना।"] * 8
DEVANAGARI = compile_scripts(["Devanagari"])


def test_merges_stay_within_the_words_of_the_pre_tokenizer(pico_byte_level: Path) -> None:
    """It cuts Hindi at vowel signs: merges across them filled nine of ten new rows, and no text met them."""
    base = json.loads((pico_byte_level / "tokenizer.json").read_text("utf-8"))
    merged = merge_byte_level(base, learn_merges(base, HINDI, 50, DEVANAGARI).merges, DEVANAGARI, [])
    ids = {index for line in FastEngine(merged.content).encode_batch(HINDI, None) for index in line}
    used = sum(index in ids for index in range(400, 400 + len(merged.added)))
    whole = [piece for piece in merged.added if "\ufffd" not in piece]
    assert used > 0.6 * len(whole)
    ceiling = chars_per_word(base, HINDI)
    assert ceiling < 3 and all(len(piece) <= 5 for piece in whole)


def test_a_widened_pre_tokenizer_keeps_words_whole_and_changes_nothing_else(
    pico_byte_level: Path, tmp_path: Path
) -> None:
    base = json.loads((pico_byte_level / "tokenizer.json").read_text("utf-8"))
    wide = widen(base, DEVANAGARI)
    assert chars_per_word(wide, HINDI) > 1.8 * chars_per_word(base, HINDI)
    other = [text for text in AWKWARD + random_texts(5, 800) if "\u0000" not in text] + ["abcहa", "it's 12.5% of“that”"]
    old, new = FastEngine(base), FastEngine(wide)
    plain = [text for text in other if not DEVANAGARI.own.search(text)]
    assert old.encode_batch(plain, None) == new.encode_batch(plain, None)
    merged = merge_byte_level(wide, learn_merges(wide, HINDI, 80, DEVANAGARI).merges, DEVANAGARI, [])
    write = tmp_path / "tokenizer.json"
    write.write_text(json.dumps(merged.content), encoding="utf-8")
    encoder = load_encoder(write)
    assert encoder.encode_batch(plain) == old.encode_batch(plain, None)
    assert merge_by_merge(merged.content)(HINDI) == encoder.encode_batch(HINDI)
    assert any(regex.search(r"\p{L}\p{M}\p{L}", piece) for piece in merged.added), "over a vowel sign"
    assert [encoder.decode(encoder.encode(text)) for text in HINDI] == HINDI


LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize("split", [None, LLAMA_3_SPLIT])
def test_english_right_behind_a_mark_is_cut_as_before(pico_byte_level: Path, split: str | None) -> None:
    """The base takes a mark and the signs behind it as one run: what follows that run begins a word of its own."""
    base = json.loads((pico_byte_level / "tokenizer.json").read_text("utf-8"))
    if split:
        pattern = {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
        letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        base["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [pattern, letters]}
    for first in ("की", "हूँ", "क\u200d"):
        for behind in ("'s", "(name)", "_file", ".\n\nx", "abc", '"it', " (x)", "12"):
            assert _signs_and_letters(widen(base, DEVANAGARI), first + behind) == _signs_and_letters(
                base, first + behind
            )


def _signs_and_letters(content: Mapping[str, Any], text: str) -> list[str]:
    """The words of `text`, of each what is ASCII: in byte-level writing all else stands for other bytes."""
    words = Tokenizer.from_str(json.dumps(content)).pre_tokenizer.pre_tokenize_str(text)
    told = ["".join(filter(str.isascii, word.replace("Ċ", "\n"))) for word, _ in words]
    return [word for word in told if word]


def test_a_pre_tokenizer_that_cannot_be_widened_is_named(pico_byte_level: Path) -> None:
    base = json.loads((pico_byte_level / "tokenizer.json").read_text("utf-8"))
    split = {"type": "Split", "pattern": {"String": "\u0904"}, "behavior": "Isolated", "invert": False}
    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    every = {"type": "Sequence", "pretokenizers": [split, letters]}
    with pytest.raises(VocabularyError, match="cannot be widened"):
        widen({**base, "pre_tokenizer": every}, DEVANAGARI)
