"""A file of questions to a file of answers: every row once, in order, whatever happens in between.

Answers are kept as they come beside the output, under a name of its own; a run that was stopped finds them there.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yangtuo import console
from yangtuo.data.records import RECORD_SUFFIXES, TEXT_SUFFIXES, Record, list_files, open_text, read_records, suffix
from yangtuo.data.shapes import UnusableError, recognise
from yangtuo.data.template import Message
from yangtuo.errors import DataError, OutputError
from yangtuo.files import parse_json

_ANSWER_KEYS = {"instruction": "output", "instruct": "answer", "input": "target"}
"""What stands in a row of each shape, and the answer that a test set leaves out."""
_PROMPT_KEYS = ("prompt", "question", "text")
_SUBMISSION = "test_predictions.json"


@dataclass(frozen=True)
class Question:
    """A row of the input, and what is asked of it."""

    values: dict[str, Any]
    messages: list[Message]


@dataclass(frozen=True)
class Answer:
    """The reply to a question, and why it ended."""

    text: str
    finish: str


Ask = Callable[[int, Sequence[Message]], Answer]


def read_questions(path: Path) -> list[Question]:
    """All questions of a file or directory, in order; raises `DataError` naming the first row that is none."""
    questions = []
    for file in list_files(path, (*TEXT_SUFFIXES, *RECORD_SUFFIXES)):
        for record in _text_lines(file) if suffix(file) in TEXT_SUFFIXES else read_records(file):
            questions.append(Question(record.values, _messages(record)))
    if not questions:
        raise DataError(f"{path} holds no questions", expected="at least one line or row")
    return questions


def _text_lines(file: Path) -> Iterator[Record]:
    with open_text(file) as (stream, encoding):
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield Record({"id": number, "prompt": line.strip()}, f"{file}:{number}", encoding)


def _messages(record: Record) -> list[Message]:
    values = dict(record.values)
    for turns in ("messages", "conversations"):
        if isinstance(values.get(turns), list):
            values[turns] = [*values[turns], {"role": "assistant", "content": ""}]
    key = next((key for key in _ANSWER_KEYS if key in values), None)
    if key is not None:
        values.setdefault(_ANSWER_KEYS[key], "")
    prompts = [values[name] for name in _PROMPT_KEYS if isinstance(values.get(name), str)]
    try:
        if key is None and "messages" not in values and "conversations" not in values and prompts:
            messages = [Message("user", prompts[0])]
        else:
            messages = recognise(Record(values, record.place)).read(values).messages
    except UnusableError as error:
        raise DataError(f"{record.place} cannot be asked", found=str(error)) from error
    while messages and messages[-1].role == "assistant":
        messages.pop()
    if not messages or not messages[-1].content.strip():
        raise DataError(f"{record.place} asks nothing", found="an empty question", expected="a text to reply to")
    return messages


def predict(
    questions: Sequence[Question], ask: Ask, output: Path, settings: Mapping[str, Any], concurrency: int
) -> int:
    """Asks what has not been answered yet, `concurrency` at a time, and writes `output`; returns how many were asked.

    `settings` say what the answers depend on: answers of other settings are never mixed in.
    """
    partial = output.with_name(f".{output.name}.partial")
    answers = _read_partial(partial, settings, len(questions))
    waiting = [index for index in range(len(questions)) if index not in answers]
    if answers:
        console.note(f"{len(answers):,} answers of {len(questions):,} are there already")
    with partial.open("a", encoding="utf-8") as kept, console.progress("answering", len(questions), "rows") as bar:
        bar.advance(len(answers))
        if not answers:
            kept.truncate(0)
            _write_line(kept, {"settings": dict(settings)})
        for index, answer in _asked(questions, waiting, ask, concurrency):
            answers[index] = answer
            _write_line(kept, {"index": index, "prediction": answer.text, "finish_reason": answer.finish})
            bar.advance()
    draft = output.with_name(f".{output.name}.draft")
    with draft.open("w", encoding="utf-8") as file:
        for index, question in enumerate(questions):
            row = {"prediction": answers[index].text, "finish_reason": answers[index].finish}
            _write_line(file, {**question.values, **row})
    draft.rename(output)
    partial.unlink()
    return len(waiting)


def write_submission(output: Path) -> Path:
    """Zips the rows of `output` as PromptCBLUE's competition takes them: each with its prediction as the target."""
    path = output.with_suffix(".zip")
    lines = []
    for line in output.read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = parse_json(line, str(output))
        row["target"] = row.pop("prediction")
        row.pop("finish_reason")
        lines.append(json.dumps(row, ensure_ascii=False))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(_SUBMISSION, "\n".join(lines) + "\n")
    return path


def _asked(
    questions: Sequence[Question], waiting: Sequence[int], ask: Ask, concurrency: int
) -> Iterator[tuple[int, Answer]]:
    """Answers as they come; a few more than are asked at a time wait, so that a long input is no long queue."""
    left = iter(waiting)
    running: dict[Future[Answer], int] = {}
    with ThreadPoolExecutor(concurrency) as pool:
        try:
            while True:
                while len(running) < 2 * concurrency and (index := next(left, None)) is not None:
                    running[pool.submit(ask, index, questions[index].messages)] = index
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read_partial(partial: Path, settings: Mapping[str, Any], count: int) -> dict[int, Answer]:
    """The answers of a run that was stopped; the last line may be cut short. Those of other settings are refused."""
    if not partial.is_file():
        return {}
    lines = partial.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    whole: list[dict[str, Any]] = [parse_json(line, str(partial)) for line in lines if line.endswith("\n")]
    if not whole:
        return {}
    if whole[0].get("settings") != json.loads(json.dumps(settings)):
        raise OutputError(
            f"{partial} holds answers of another run: its model, its settings or its questions were others",
            found=f"{len(whole) - 1:,} answers",
            expected="the same command, to go on, or another --output",
            run=f"rm {partial}, to give them up",
        )
    if len(whole) < len(lines):  # what was cut short is asked again
        os.truncate(partial, sum(len(line.encode()) for line in lines[: len(whole)]))
    rows = [row for row in whole[1:] if 0 <= row["index"] < count]
    return {row["index"]: Answer(row["prediction"], row["finish_reason"]) for row in rows}


def _write_line(file: Any, value: Mapping[str, Any]) -> None:
    file.write(json.dumps(value, ensure_ascii=False) + "\n")
    file.flush()
