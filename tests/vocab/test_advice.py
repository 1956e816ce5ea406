"""Advice: who is about to expand for nothing, or to train too little, is told so with the figures."""

from __future__ import annotations

from yangtuo.vocab.advice import advise


def test_a_base_with_the_script_is_left_as_it_is() -> None:
    advice = advise(1.096, 1.218, 4000)
    assert not advice.pays and "1.10 → 1.22" in advice.text and "already has the script" in advice.text


def test_training_that_is_too_short_for_the_new_rows_is_named_with_what_would_do() -> None:
    advice = advise(0.56, 1.086, 4000, 100_000)
    assert not advice.pays
    assert "256,000 tokens" in advice.text and "1,562 pieces" in advice.text and "are 25.0" in advice.text
    assert advise(0.56, 1.086, 1562, 100_000).pays and advise(0.56, 1.086, 4000, 256_000).pays


def test_a_gain_is_said_in_shorter_texts() -> None:
    advice = advise(0.5, 1.0, 4000)
    assert advice.pays and "50% shorter" in advice.text


def test_nothing_is_said_where_nothing_was_measured() -> None:
    assert not advise(0.0, 0.0, 4000).pays
