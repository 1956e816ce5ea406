"""Questions: read strictly, judged by the accepted answers alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from yangtuo.data.template import Message
from yangtuo.errors import DataError, FileError
from yangtuo.evaluation.questions import Question, ask, read_questions
from yangtuo.inference.engine import Sampling


class Parrot:
    """Answers every question with the same words."""

    def __init__(self, reply: str) -> None:
        self.reply = reply
        self.asked: list[str] = []

    def replies(self, conversations: Sequence[Sequence[Message]], _sampling: Sampling) -> list[str]:
        self.asked += [messages[-1].content for messages in conversations]
        return [self.reply] * len(conversations)


def test_a_reply_is_right_where_an_accepted_answer_stands_in_it() -> None:
    questions = [
        Question("长江流进哪片海？", ("东海",)),
        Question("昆明的美称？", ("春城", "花城")),
        Question("三？", ("西海",)),
    ]
    parrot = Parrot("它叫春城，流进东海。")
    answered = ask(parrot, questions, Sampling(), batch_size=2)  # type: ignore[arg-type]
    assert [row.right for row in answered] == [True, True, False]
    assert parrot.asked == [question.text for question in questions]


def test_questions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "questions.json"
    path.write_text(
        json.dumps([{"instruction": "问", "input": "文", "answers": ["答"], "fact": "a01"}]), encoding="utf-8"
    )
    assert read_questions(path) == [Question("问\n文", ("答",))]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("[{", FileError, "JSON"),
        ("[]", DataError, "no questions"),
        ('[{"instruction": "q", "answers": ["a"]}, {"question": "q"}]', DataError, "row 2"),
    ],
)
def test_a_file_of_another_shape_is_named(tmp_path: Path, content: str, error: type, message: str) -> None:
    path = tmp_path / "questions.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(error, match=message):
        read_questions(path)
