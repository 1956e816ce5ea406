"""Text of a stream: whole characters, no lost spaces, nothing shown that turns out to be a stop string."""

from __future__ import annotations

import random

import pytest

from yangtuo.inference.text import Detokenizer, StopStrings
from yangtuo.vocab.encoding import load_encoder

TEXTS = [
    "the 羊驼 cat",
    "你好，世界！",
    "👩‍👩‍👧 family 🇨🇳",
    "مرحبا بالعالم",
    "a\n\n  b\tc",
    "</s> <|im_end|> [INST]",
    "é" * 20,
    "",
]


@pytest.mark.parametrize("family", ["pico_tokenizer", "pico_byte_level"])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_text_join_to_the_whole(family: str, text: str, request: pytest.FixtureRequest) -> None:
    encoder = load_encoder(request.getfixturevalue(family))
    stream = Detokenizer(encoder)
    ids = encoder.encode(text)
    parts = [stream.push(token) for token in ids]
    assert not any("\ufffd" in part for part in parts)
    assert "".join(parts) + stream.finish() == encoder.decode(ids)


@pytest.mark.parametrize("family", ["pico_tokenizer", "pico_byte_level"])
def test_a_continuation_keeps_the_space_at_the_seam(family: str, request: pytest.FixtureRequest) -> None:
    """A completion of "the cat" must begin with a space, as the OpenAI API gives it."""
    encoder = load_encoder(request.getfixturevalue(family))
    whole = encoder.encode("the cat sat on the mat")
    cut = len(encoder.encode("the cat"))
    stream = Detokenizer(encoder, whole[:cut])
    assert "".join(map(stream.push, whole[cut:])) + stream.finish() == " sat on the mat"


@pytest.mark.parametrize("family", ["pico_tokenizer", "pico_byte_level"])
def test_bytes_that_are_no_text_neither_end_nor_hold_up_the_stream(family: str, request: pytest.FixtureRequest) -> None:
    encoder = load_encoder(request.getfixturevalue(family))
    half = encoder.encode("驼")[-2]
    stream = Detokenizer(encoder)
    shown = "".join(stream.push(token) for token in [half] * 40)
    assert shown, "forty tokens without a character are not held back"
    assert "cat" in "".join(map(stream.push, encoder.encode("cat"))) + stream.finish()


@pytest.mark.parametrize("family", ["pico_tokenizer", "pico_byte_level"])
def test_half_a_character_at_the_end_is_not_shown(family: str, request: pytest.FixtureRequest) -> None:
    encoder = load_encoder(request.getfixturevalue(family))
    stream = Detokenizer(encoder)
    shown = "".join(map(stream.push, encoder.encode("cat 驼")[:-1])) + stream.finish()
    assert shown.rstrip() == "cat"


def test_stop_strings_end_the_text_wherever_they_are_cut() -> None:
    rng = random.Random(5)
    for _ in range(300):
        text = "".join(rng.choice("ab#") for _ in range(30))
        stops = ["".join(rng.choice("ab#") for _ in range(rng.randint(1, 4))) for _ in range(2)]
        stream, shown, place = StopStrings(stops), "", 0
        while place < len(text):
            step = rng.randint(1, 3)
            shown += stream.push(text[place : place + step])
            place += step
        shown += stream.finish()
        expected = min([text.find(stop) for stop in stops if stop in text], default=len(text))
        assert shown == text[:expected], (text, stops)
