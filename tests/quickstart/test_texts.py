"""The quickstart's own texts: enough of them, consistent, and held-out questions that were never trained on."""

from __future__ import annotations

import json
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest

import yangtuo.quickstart

TEXTS = Path(yangtuo.quickstart.__file__).parent / "texts"
TOPICS = ("animals", "culture", "nature", "town")


def rows(kind: str, topic: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((TEXTS / kind / f"{topic}.json").read_text("utf-8"))
    return loaded


def test_there_is_as_much_as_the_quickstart_needs() -> None:
    num_bytes = sum(path.stat().st_size for path in (TEXTS / "zh").iterdir())
    assert 60_000 <= num_bytes <= 100_000
    assert sum(len(rows("questions", topic)) for topic in TOPICS) == 400
    assert sum(len(rows("held-out-questions", topic)) for topic in TOPICS) == 60


@pytest.mark.parametrize("topic", TOPICS)
def test_held_out_questions_ask_trained_facts_in_words_not_trained_on(topic: str) -> None:
    trained = rows("questions", topic)
    for held_out in rows("held-out-questions", topic):
        same_fact = [row for row in trained if row["fact"] == held_out["fact"]]
        assert len(same_fact) == 4
        assert all(any(answer in row["output"] for answer in held_out["answers"]) for row in same_fact), held_out
        for row in trained:
            assert held_out["instruction"] not in row["instruction"]
            assert row["instruction"] not in held_out["instruction"]
            assert SequenceMatcher(None, held_out["instruction"], row["instruction"]).ratio() < 0.85


@pytest.mark.parametrize("topic", TOPICS)
def test_no_question_gives_its_answer_away(topic: str) -> None:
    for held_out in rows("held-out-questions", topic):
        assert not any(answer in held_out["instruction"] for answer in held_out["answers"])


def test_held_out_prose_shares_no_sentence_with_the_training_prose() -> None:
    for language, end in (("zh", "。"), ("en", ".")):
        trained = "".join(path.read_text("utf-8") for path in (TEXTS / language).iterdir()).replace("\n", " ")
        for path in (TEXTS / f"{language}-held-out").iterdir():
            sentences = [part.strip() for part in path.read_text("utf-8").replace("\n", " ").split(end)]
            shared = [sentence for sentence in sentences if len(sentence) > 12 and sentence in trained]
            assert shared == [], path.name
