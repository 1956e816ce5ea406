"""Questions with known answers: a reply is right where one of the accepted answers stands in it.

The file is a JSON array of `{"instruction": question, "answers": [accepted strings]}`, with an optional `input`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yangtuo.errors import DataError, FileError


@dataclass(frozen=True)
class Question:
    """A question and the strings of which one must stand in a right reply."""

    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Answered:
    """A question with a model's reply."""

    question: str
    answers: tuple[str, ...]
    reply: str
    right: bool


def read_questions(path: Path) -> list[Question]:
    """Reads a file of questions; raises `FileError` for bad JSON and `DataError` for a row of another shape."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read as JSON", found=str(error)) from error
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path} holds no questions", expected="a JSON array of objects")
    return [_question(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]


def _question(row: object, where: str) -> Question:
    if not isinstance(row, dict) or not row.get("instruction") or not row.get("answers"):
        found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise DataError(f"{where} is no question", found=found, expected="the keys instruction and answers")
    text = "\n".join(part for part in (row["instruction"], row.get("input")) if part)
    return Question(text, tuple(map(str, row["answers"])))


def judge(questions: Sequence[Question], replies: Sequence[str]) -> dict[str, Any]:
    """How many replies hold an accepted answer, and every reply."""
    answered = [
        Answered(question.text, question.answers, reply, any(answer in reply for answer in question.answers))
        for question, reply in zip(questions, replies, strict=True)
    ]
    num_right = sum(row.right for row in answered)
    return {
        "num_questions": len(answered),
        "num_right": num_right,
        "share_right": round(num_right / len(answered), 4),
        "replies": [dataclasses.asdict(row) for row in answered],
    }
