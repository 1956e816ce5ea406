"""Questions with known answers: a reply is right where one of the accepted answers stands in it.

The file is a JSON array of `{"instruction": question, "answers": [accepted strings]}`, with an optional `input`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yangtuo import files
from yangtuo.errors import DataError


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
    rows = files.read_json(path, list[dict[str, Any]], limit=files.LARGE)
    if not rows:
        raise DataError(f"{path} holds no questions", expected="a JSON array of objects")
    return [_question(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]


def _question(row: dict[str, Any], where: str) -> Question:
    answers = row.get("answers")
    answers = [answers] if isinstance(answers, str | int | float) else answers
    texts = [str(answer) for answer in answers] if isinstance(answers, list) else []
    said = [row.get("instruction"), row.get("input") or ""]
    if not texts or not all(text.strip() for text in texts) or not said[0] or not all(isinstance(s, str) for s in said):
        raise DataError(
            f"{where} is no question",
            found=str(row)[:80],
            expected="an instruction, and answers of which none is empty: one would stand in every reply",
        )
    return Question("\n".join(part for part in said if part), tuple(texts))


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
