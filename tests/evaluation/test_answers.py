"""Predictions are matched with the test set row by row; whatever does not match is an error, and nothing is scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from yangtuo.errors import DataError
from yangtuo.evaluation.answers import Sample, read_predictions, read_samples

IDS = ("a", "b", "c")


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    rows = [{"sample_id": name, "input": f"问 {name}", "target": name} for name in IDS]
    return read_samples(write(tmp_path / "gold.json", rows))


def write(file: Path, value: Any) -> Path:
    file.write_text(json.dumps(value), encoding="utf-8")
    return file


def predicted(*ids: str) -> list[dict[str, Any]]:
    return [{"sample_id": name, "target": name.upper()} for name in ids]


def test_predictions_in_order_are_taken(samples: list[Sample], tmp_path: Path) -> None:
    file = write(tmp_path / "predictions.json", predicted(*IDS))
    assert read_predictions(file, samples) == ["A", "B", "C"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (predicted("a", "b"), "missing: c"),
        (predicted("a", "b", "d"), "not in the test set: d"),
        (predicted("b", "a", "c"), "another order, first at row 1"),
        (predicted("a", "b", "c", "c"), "repeated: c"),
        ([*predicted("a", "b"), {"target": "C"}], "no id"),
        ([*predicted("a", "b"), {"sample_id": "c", "target": None}], "no prediction"),
        ([*predicted("a", "b"), {"sample_id": "c", "target": 3}], "no prediction"),
        ([*predicted("a", "b"), {"sample_id": "c"}], "no prediction"),
        ([*predicted("a", "b"), {"sample_id": "c", "input": "问 d", "target": ""}], "another row"),
        ([], "no rows"),
    ],
)
def test_other_rows_are_refused(samples: list[Sample], tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_predictions(write(tmp_path / "predictions.json", rows), samples)


def test_an_empty_file_is_refused(samples: list[Sample], tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no rows"):
        read_predictions(tmp_path / "empty.jsonl", samples)


def test_rows_without_ids_are_matched_by_number_and_by_their_questions(tmp_path: Path) -> None:
    samples = read_samples(write(tmp_path / "gold.json", [{"instruct": "找", "query": q, "answer": q} for q in "甲乙"]))
    right = write(tmp_path / "right.json", [{"query": "甲", "prediction": "x"}, {"query": "乙", "prediction": "y"}])
    assert read_predictions(right, samples) == ["x", "y"]
    swapped = write(tmp_path / "swapped.json", [{"query": "乙", "prediction": "y"}, {"query": "甲", "prediction": "x"}])
    with pytest.raises(DataError, match="another row"):
        read_predictions(swapped, samples)
    with pytest.raises(DataError, match="1 rows"):
        read_predictions(write(tmp_path / "short.json", [{"prediction": "x"}]), samples)


def test_a_list_of_answers_in_one_object_is_a_test_set_too(tmp_path: Path) -> None:
    samples = read_samples(write(tmp_path / "gold.json", {"source": "x", "answers": ["甲_人名", "没有"]}))
    assert [sample.reference for sample in samples] == ["甲_人名", "没有"]
    assert read_predictions(write(tmp_path / "p.json", {"answers": ["", "\ud83d"]}), samples) == ["", "\ufffd"]


def test_the_question_is_what_training_would_ask(tmp_path: Path) -> None:
    rows = [{"instruct": "找出人名", "query": "文本：甲", "answer": "甲_人名"}]
    (sample,) = read_samples(write(tmp_path / "gold.json", rows))
    assert [(turn.role, turn.content) for turn in sample.messages()] == [("user", "找出人名\n文本：甲")]
