"""Exams as they are published (CSV directories, JSON lines, parquet) to questions by subject, checked.

A file's name says its subject and split: `val/law_val.csv`, `dev/law.csv`, `law/test-00000-of-00001.parquet`.
This module asks nothing and knows no prompt.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yangtuo.data.records import RECORD_SUFFIXES, Record, list_files, open_text, read_records, suffix
from yangtuo.errors import DataError
from yangtuo.files import read_json

LETTERS = ("A", "B", "C", "D")
_SPLITS = ("train", "dev", "val", "validation", "test")
_NAME = re.compile(rf"(?:(.+)_)?({'|'.join(_SPLITS)})(?:-\d+-of-\d+)?")
_MAPPINGS = ("subjects.json", "subject_mapping.json")
_NO_SUBJECT = ("all", "auxiliary_train")  # MMLU's parquet has every question a second time under these


@dataclass(frozen=True)
class Layout:
    """The columns of an exam, and where its questions lie."""

    question: str
    choices: tuple[str, ...]
    answer: str
    answers: tuple[str, ...] = LETTERS
    """What stands for the first to the fourth choice."""
    splits: tuple[str, ...] = ("test",)
    """Where the questions to score are; the first split that is there."""
    needed: tuple[str, ...] = ()


LAYOUTS = {
    "ceval": Layout("question", LETTERS, "answer", splits=("val", "test")),
    "cmmlu": Layout("Question", LETTERS, "Answer"),
    "mmlu": Layout("question", ("choices",), "answer", splits=("test", "val")),
    "belebele": Layout(
        "question",
        ("mc_answer1", "mc_answer2", "mc_answer3", "mc_answer4"),
        "correct_answer_num",
        answers=("1", "2", "3", "4"),
        needed=("flores_passage",),
    ),
}


@dataclass
class Paper:
    """The questions of one subject."""

    subject: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    shots: list[dict[str, Any]] = field(default_factory=list)
    """Solved examples, from the dev split."""
    group: str | None = None
    has_answers: bool = True


def read_exam(suite: str, path: Path) -> list[Paper]:
    """The papers of an exam, by subject; raises `DataError` for a row that cannot be asked or scored."""
    layout = LAYOUTS[suite]
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for file in list_files(path, RECORD_SUFFIXES):
        if file.name in _MAPPINGS:
            continue
        place = _subject_and_split(file)
        if place[0] not in _NO_SUBJECT:
            checked = [_checked(record, layout) for record in _records(file, suite)]
            if not checked:
                raise DataError(f"{file} holds no questions", expected="a header and at least one row")
            rows.setdefault(place, []).extend(checked)
    present = {split for _, split in rows}
    split = next((name for name in layout.splits if name in present), None)
    if split is None:
        raise DataError(
            f"{path} holds no questions of {suite}",
            found=f"the splits {', '.join(sorted(present))}" if present else "no file of questions",
            expected=f"files of the split {' or '.join(layout.splits)}, such as {layout.splits[0]}/SUBJECT.csv",
        )
    groups = _groups(path)
    subjects = sorted(subject for subject, name in rows if name == split)
    return [
        _paper(subject, rows[subject, split], rows.get((subject, "dev"), []), groups.get(subject), layout)
        for subject in subjects
    ]


def _paper(
    subject: str, rows: list[dict[str, Any]], shots: list[dict[str, Any]], group: str | None, layout: Layout
) -> Paper:
    has_answers = {bool(row[layout.answer] != "") for row in rows}
    if len(has_answers) > 1:
        raise DataError(f"only some questions of {subject} have an answer", expected="all of them, or none")
    return Paper(subject, rows, shots, group, has_answers.pop())


def _subject_and_split(file: Path) -> tuple[str, str]:
    stem = file.name.removesuffix(".gz").removesuffix(".zst").rsplit(".", 1)[0]
    match = _NAME.fullmatch(stem)
    if match:
        subject, split = match[1] or file.parent.name, match[2]
    else:
        subject, split = stem, file.parent.name if file.parent.name in _SPLITS else "test"
    return subject, {"validation": "val"}.get(split, split)


def _records(file: Path, suite: str) -> Iterator[Record]:
    """The rows; MMLU's own CSV files have no header."""
    if suite != "mmlu" or suffix(file) != ".csv":
        yield from read_records(file)
        return
    with open_text(file, newline="") as (stream, encoding):
        for number, row in enumerate(csv.reader(stream), 1):
            if number == 1 and "question" in row:
                yield from read_records(file)
                return
            if len(row) != 6:
                raise DataError(
                    f"{file}:{number} is no question",
                    found=f"{len(row)} fields",
                    expected="a question, A, B, C, D, answer",
                )
            values = {"question": row[0], "choices": row[1:5], "answer": row[5]}
            yield Record(values, f"{file}:{number}", encoding)


def _checked(record: Record, layout: Layout) -> dict[str, Any]:
    """The row with every value a text, `answer` as an index where the exam counts so; empty where there is none."""
    values = record.values
    needed = (layout.question, *layout.choices, *layout.needed)
    missing = [name for name in needed if values.get(name) is None]
    if missing:
        raise DataError(
            f"{record.place} lacks {', '.join(missing)}",
            found=f"the columns {', '.join(map(str, values))}",
            expected=", ".join((*needed, layout.answer)),
        )
    if not str(values[layout.question]).strip():
        raise DataError(f"{record.place} has an empty {layout.question}", expected="a text")
    row = {str(name): _text(value) for name, value in values.items() if value is not None}
    if layout.choices == ("choices",) and len(row["choices"]) != len(LETTERS):
        raise DataError(f"{record.place} has not four choices", found=str(row["choices"]))
    row[layout.answer] = _answer(record, layout)
    return row


def _answer(record: Record, layout: Layout) -> str | int:
    value = record.values.get(layout.answer)
    text = "" if value is None else str(value).strip()
    by_index = layout.choices == ("choices",)
    allowed = (*layout.answers, "0", "1", "2", "3") if by_index else layout.answers
    if text and text not in allowed:
        raise DataError(
            f"{record.place} has an answer that is none of the choices",
            found=repr(value),
            expected=" ".join(allowed) + ", or none at all in a test set without answers",
        )
    return allowed.index(text) % len(LETTERS) if by_index and text else text


def _text(value: Any) -> Any:
    return [str(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _groups(path: Path) -> dict[str, str]:
    """Subject -> group, from the mapping that C-Eval publishes beside its questions."""
    file = next((path / name for name in _MAPPINGS if (path / name).is_file()), None)
    if file is None:
        return {}
    try:
        mapping = read_json(file)
        return {name: row["category"] if isinstance(row, dict) else row[-1] for name, row in mapping.items()}
    except (ValueError, AttributeError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{file} is no mapping of subjects", found=str(error), expected="subject: {category: …}"
        ) from error
