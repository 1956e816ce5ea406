"""Questions: read strictly, judged by the accepted answers alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from yangtuo.errors import DataError, FileError
from yangtuo.evaluation.questions import Question, judge, read_questions


def test_a_reply_is_right_where_an_accepted_answer_stands_in_it() -> None:
    questions = [
        Question("长江流进哪片海？", ("东海",)),
        Question("昆明的美称？", ("春城", "花城")),
        Question("三？", ("西海",)),
    ]
    figures = judge(questions, ["它叫春城，流进东海。"] * 3)
    assert [row["right"] for row in figures["replies"]] == [True, True, False]
    assert (figures["num_right"], figures["num_questions"], figures["share_right"]) == (2, 3, 0.6667)


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
