"""Test sets with a reference answer a row, and files of finished answers to them, matched row by row.

A prediction file must hold the rows of the test set in its order: whatever is missing, repeated, of another row or no
text is an error, never scored as something else. This module asks no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yangtuo.data.records import RECORD_SUFFIXES, Record, list_files, read_records
from yangtuo.data.shapes import UnusableError, recognise
from yangtuo.data.template import Message
from yangtuo.errors import DataError

_ID_KEYS = ("sample_id", "id")
_REFERENCE_KEYS = ("answer", "target", "output")
_PREDICTION_KEYS = ("prediction", "reply", "response", "target", "output", "answer")
_IDENTITY_KEYS = ("task_dataset", "instruct", "instruction", "query", "input")  # equal where both rows have them
_HALVES = re.compile("[\ud800-\udfff]")  # of a character beyond U+FFFF: no file can hold one
_NUM_NAMED = 5  # ids in a message


@dataclass(frozen=True)
class Sample:
    """A row of a test set."""

    record: Record
    reference: str

    @property
    def id(self) -> str | None:
        """The row's id, where it has one."""
        return _id(self.record)

    def messages(self) -> list[Message]:
        """What to ask: the conversation up to the answer. Raises `DataError` where the row has no question."""
        try:
            return recognise(self.record).read(self.record.values).messages[:-1]
        except UnusableError as error:
            raise DataError(f"{self.record.place} cannot be asked", found=str(error)) from error


def read_samples(path: Path) -> list[Sample]:
    """The rows of a test set: objects with `answer`, `target` or `output`, or one object with a list of `answers`."""
    return [Sample(record, _text(record, _REFERENCE_KEYS, "reference answer")) for record in _rows(path)]


def read_predictions(path: Path, samples: Sequence[Sample]) -> list[str]:
    """The predicted text of each sample; raises `DataError` where the file's rows are not those of the test set."""
    rows = _rows(path)
    _require_same_rows(path, rows, samples)
    return [_text(row, _PREDICTION_KEYS, "prediction") for row in rows]


def _rows(path: Path) -> list[Record]:
    rows: list[Record] = []
    for file in list_files(path, RECORD_SUFFIXES):
        for record in read_records(file):
            answers = record.values.get("answers")
            if isinstance(answers, list) and not any(key in record.values for key in _REFERENCE_KEYS):
                places = (f"{file}, answer {number}" for number in range(1, len(answers) + 1))
                rows += [Record({"answer": text}, place) for text, place in zip(answers, places, strict=True)]
            else:
                rows.append(record)
    if not rows:
        raise DataError(f"{path} holds no rows", expected="at least one row with an answer")
    return rows


def _text(record: Record, keys: Sequence[str], what: str) -> str:
    key = next((key for key in keys if key in record.values), None)
    if key is None:
        found = "the keys " + ", ".join(map(str, record.values))
        raise DataError(f"{record.place} has no {what}", found=found, expected="one of the keys " + ", ".join(keys))
    value = record.values[key]
    if not isinstance(value, str):
        raise DataError(
            f"{record.place} has no {what}", found=f"{key}: {value!r}", expected="a text, which may be empty"
        )
    return _HALVES.sub("\ufffd", value)


def _id(record: Record) -> str | None:
    value = next((record.values[key] for key in _ID_KEYS if record.values.get(key) is not None), None)
    return None if value is None else _HALVES.sub("\ufffd", str(value))


def _require_same_rows(path: Path, rows: Sequence[Record], samples: Sequence[Sample]) -> None:
    expected = [sample.id for sample in samples]
    actual = [_id(row) for row in rows]
    has_ids = None not in expected
    if has_ids and None in actual:
        raise DataError(f"{rows[actual.index(None)].place} has no id", expected=f"the test set's: {expected[0]}, …")
    if has_ids and expected != actual:
        missing, unknown = _named(set(expected) - set(actual)), _named(set(actual) - set(expected))
        wrong = [f"missing: {missing}"] * bool(missing) + [f"not in the test set: {unknown}"] * bool(unknown)
        if not wrong and len(actual) > len(set(actual)):
            wrong = ["repeated: " + _named({name for name in actual if actual.count(name) > 1})]
        first = next((index for index, pair in enumerate(zip(expected, actual, strict=False)) if len(set(pair)) > 1), 0)
        wrong = wrong or [f"the same ids in another order, first at row {first + 1}: {actual[first]}"]
        raise DataError(
            f"{path} does not hold the rows of the test set",
            found="; ".join(wrong),
            expected=f"{len(samples)} predictions with the test set's ids, in its order",
        )
    if len(rows) != len(samples):
        raise DataError(
            f"{path} does not hold the rows of the test set", found=f"{len(rows)} rows", expected=f"{len(samples)} rows"
        )
    for row, sample in zip(rows, samples, strict=True):
        for key in _IDENTITY_KEYS:
            values = [values[key] for values in (row.values, sample.record.values) if values.get(key) is not None]
            if len(values) == 2 and values[0] != values[1]:
                raise DataError(
                    f"{row.place} is the prediction for another row",
                    found=f"{key}: {_shortened(values[0])}",
                    expected=f"{_shortened(values[1])} ({sample.record.place})",
                )


def _named(ids: Iterable[str | None]) -> str:
    names = sorted(map(str, ids))
    return ", ".join(names[:_NUM_NAMED]) + (f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else "")


def _shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
