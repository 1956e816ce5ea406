"""Evaluation sets as passages: the lines of their texts, the fields of their rows, and which of these are questions.

This module does not know what is done with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from yangtuo.data.readers import read_documents
from yangtuo.data.records import RECORD_SUFFIXES, TEXT_SUFFIXES, list_files, read_records, suffix

QUESTION_KEYS = ("question", "instruction", "query", "prompt", "problem", "stem", "input", "text", "题目", "问题")
"""The fields of a row that hold its question; the first that is there counts, else the longest field does."""


def read_passages(path: Path) -> Iterator[tuple[str, bool]]:
    """The passages of the files at `path`, and of each whether it is a question."""
    for file in list_files(path, (*TEXT_SUFFIXES, *RECORD_SUFFIXES)):
        if suffix(file) in TEXT_SUFFIXES:
            yield from ((document.text, True) for document in read_documents(file, "line"))
        else:
            for record in read_records(file):
                fields = {key.lower(): value for key, value in record.values.items() if isinstance(value, str)}
                named = [key for key in QUESTION_KEYS if fields.get(key)]
                question = named[0] if named else max(fields, key=lambda key: len(fields[key]), default="")
                yield from ((value, key == question) for key, value in fields.items())
