"""Questions with known answers: a reply is right where one of the accepted answers stands in it.

The file is a JSON array of `{"instruction": question, "answers": [accepted strings]}`, with an optional `input`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yangtuo import console
from yangtuo.data.template import Message
from yangtuo.errors import DataError, FileError
from yangtuo.inference.conversation import Conversation
from yangtuo.inference.engine import Sampling


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


def ask(
    conversation: Conversation, questions: Sequence[Question], sampling: Sampling, batch_size: int = 16
) -> list[Answered]:
    """Asks every question on its own, in batches, and judges the replies."""
    answered: list[Answered] = []
    with console.progress("asking", total=len(questions), unit="questions") as bar:
        for first in range(0, len(questions), batch_size):
            batch = questions[first : first + batch_size]
            replies = conversation.replies([[Message("user", question.text)] for question in batch], sampling)
            for question, reply in zip(batch, replies, strict=True):
                right = any(answer in reply for answer in question.answers)
                answered.append(Answered(question.text, question.answers, reply, right))
            bar.advance(len(batch))
    return answered
