"""Which pieces may be added: nothing that text of other scripts could meet."""

from __future__ import annotations

import pytest

from yangtuo.errors import VocabularyError
from yangtuo.vocab.scripts import compile_scripts, letter_counts, scripts_of_language


@pytest.mark.parametrize("piece", ["你", "你好", "，", "。”", "「", "々", "\u3000\u3000", "，但是"])
def test_han_and_its_punctuation_are_accepted(piece: str) -> None:
    assert compile_scripts(["Han"]).accepts(piece)


@pytest.mark.parametrize("piece", ["", "10", "你1", "\u2581你", "a", "——", "”", "１", "Ａ", "ね", "你a", "·", " "])
def test_what_other_text_could_meet_is_not(piece: str) -> None:
    """Digits, Latin, full-width digits, quotes and dashes occur outside Chinese."""
    assert not compile_scripts(["Han"]).accepts(piece)


def test_spaced_scripts_take_a_leading_blank() -> None:
    cyrillic = compile_scripts(["Cyrillic"])
    assert cyrillic.accepts("\u2581при") and cyrillic.accepts("при") and not cyrillic.accepts("\u2581")
    assert cyrillic.runs("о при, abc где") == ["о", " при", " где"]
    assert compile_scripts(["Han"]).runs("他说 “好”，OK。") == ["他说", "好", "，", "。"]


def test_the_beginning_of_a_character_is_judged_by_what_it_can_become() -> None:
    han = compile_scripts(["Han"])
    assert han.begins(b"", "你".encode()[:2]) and han.begins("你".encode(), "好".encode()[:2])
    assert not han.begins(b"", "“".encode()[:2]), "General Punctuation is met in English"
    assert not han.begins(b"", b"\xbd\xa0") and not han.begins(b"a", "好".encode()[:2])


def test_an_unknown_script_is_named() -> None:
    with pytest.raises(VocabularyError, match="Hanzi"):
        compile_scripts(["Hanzi"])
    with pytest.raises(VocabularyError):
        compile_scripts([])


def test_share_counts_own_characters() -> None:
    assert compile_scripts(["Han"]).share("你好ab") == 0.5
    assert compile_scripts(["Han"]).share("") == 0.0


@pytest.mark.parametrize(
    ("script", "accepted", "refused"),
    [
        ("Katakana", ["コンピューター", "サーバー", "ー", "・"], ["a", "1", "漢"]),
        ("Arabic", ["مَرْحَبًا", "؟", "،", "می\u200cخواهم", "\u2581في"], ["?", ",", "\u200c", "\u0301"]),
        ("Devanagari", ["हिन्दी", "।", "क्\u200dष"], ["\u200d", "|"]),
        ("Bengali", ["বাংলা", "।"], ["a"]),
        ("Cyrillic", ["за\u0301мок"], ["\u0301", "a"]),
        ("Khmer", ["ខ្មែរ", "ក\u200bខ"], ["\u200b", " "]),
        ("Latin", ["không", "\u2581người", "é"], ["the", "\u2581in", "1", "def"]),
        ("Hangul", ["\u2581한국", "。"], ["1", "ー"]),
    ],
)
def test_a_script_has_what_unicode_says_it_shares(script: str, accepted: list[str], refused: list[str]) -> None:
    """Long-vowel marks, vowel signs and dandas have no script of their own; joiners need a letter beside."""
    scripts = compile_scripts([script])
    assert all(map(scripts.accepts, accepted)) and not any(map(scripts.accepts, refused))


@pytest.mark.parametrize(
    ("tag", "names"),
    [
        ("ja", ("Han", "Hiragana", "Katakana")),
        ("ko", ("Hangul", "Han")),
        ("zh-TW", ("Han",)),
        ("sr-Latn", ("Latin",)),
        ("hi", ("Devanagari",)),
        ("dz", ("Tibetan",)),
    ],
)
def test_a_language_says_its_scripts(tag: str, names: tuple[str, ...]) -> None:
    assert scripts_of_language(tag) == names
    assert compile_scripts(names).names == names
    with pytest.raises(VocabularyError, match="--script"):
        scripts_of_language("tlh")


def test_scripts_are_known_by_any_of_their_names() -> None:
    assert compile_scripts(["hang", "HAN"]).names == ("Hangul", "Han")
    assert compile_scripts(["Jpan"]).names == ("Han", "Hiragana", "Katakana")
    with pytest.raises(VocabularyError, match="did you mean Tibetan"):
        compile_scripts(["Tibettan"])


def test_letters_are_counted_by_script() -> None:
    assert letter_counts("བོད་ཡིག abc 12") == {"Tibetan": 7, "Latin": 3}
    assert list(letter_counts("ქართული ენა, עברית")) == ["Georgian", "Hebrew"]
