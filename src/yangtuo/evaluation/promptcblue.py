"""PromptCBLUE: 16 medical tasks whose answers are text, scored as the benchmark's own scorer does.

`parse_answer` turns any text into the task's structure, with the published rules and their quirks (docs/design holds
which); `score_tasks` gives the published figures: strict micro F1 of extracted items, macro or support-weighted F1 of
labels, ROUGE-L of texts. This module asks no model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from yangtuo.errors import DataError
from yangtuo.evaluation.answers import Sample
from yangtuo.evaluation.extraction import label_scores, match_all
from yangtuo.evaluation.rouge import rouge

Choices = Sequence[str]
Items = list[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """How a task's answers are read and scored; `counted` names the figure that enters the overall score."""

    parse: Callable[[str, Choices], Any]
    metric: str
    counted: str = "f1"
    for_empty: str = ""
    """The label that an answer without one counts as."""


def _entities(text: str, choices: Choices) -> Items:
    return [
        {"entity": piece, "type": choice}
        for choice in choices
        for line in text.split("\n")
        if line.startswith(f"{choice}实体")
        for piece in _pieces(line.replace(f"{choice}实体：", ""))
    ]


def _triples(text: str, _: Choices) -> Items:
    triples = []
    for line in text.split("\n"):
        # What precedes the predicate is taken to be the two characters of "具有", whatever it is.
        predicate = line.split("关系的头尾实体对")[0][2:].strip()
        for pair in line.replace(f"具有{predicate}关系的头尾实体对如下：", "").split("。"):
            if "，尾实体为" in pair:
                head, tail = pair.split("，尾实体为")[:2]
                subject, target = head.replace("头实体为", "").strip(), tail.replace("尾实体为", "").strip()
                triples.append({"predicate": predicate, "subject": subject, "object": target})
    return triples


def _chosen_terms(text: str, choices: Choices) -> Items:
    terms = dict.fromkeys(piece for piece in _pieces(text.split("\n")[-1]) if piece in choices)
    return [{"entity": term, "type": "normalization"} for term in terms]


def _events(text: str, _: Choices) -> Items:
    return [_event(line) for line in text.split("\n")[1:]]


def _event(line: str) -> dict[str, Any]:
    event: dict[str, Any] = {"主体词": "", "发生状态": "", "描述词": [], "解剖部位": []}
    for segment in line.split("；"):
        for key in event:
            # A segment shortened by one key is offered to the later ones, as it was published.
            if segment.startswith(f"{key}："):
                segment = segment.replace(f"{key}：", "").strip()
                event[key] = _pieces(segment) if isinstance(event[key], list) else segment
    return event


def _attributes(unknown: str) -> Callable[[str, Choices], Items]:
    def parse(text: str, choices: Choices) -> Items:
        halves = (line.split("：") for line in text.split("\n")[1:])
        return [
            {"entity": half[0].strip(), "attr": half[1] if half[1] in choices else unknown}
            for half in halves
            if len(half) == 2
        ]

    return parse


_SECTIONS = ("主诉", "现病史", "辅助检查", "既往史", "诊断", "建议")


def _report(text: str, _: Choices) -> dict[str, str]:
    lines = text.strip().split("\n")[1:]
    return {
        name: line.strip().split(f"{name}：")[-1].strip()
        for name in _SECTIONS
        for line in lines
        if line.startswith(f"{name}：")
    }


def _stripped(text: str, _: Choices) -> str:
    return text.strip()


def _same_or_not(text: str, _: Choices) -> str:
    return {"相同": "是的", "不同": "不是"}.get(text.strip(), text.strip())


def _pieces(text: str) -> list[str]:
    return [piece for piece in map(str.strip, text.split("，")) if piece]


_OTHER = "非上述类型"
TASKS: dict[str, Task] = {
    "CMeEE-V2": Task(_entities, "micro"),
    "CMeIE": Task(_triples, "micro"),
    "CHIP-CDN": Task(_chosen_terms, "micro"),
    "CHIP-CDEE": Task(_events, "micro"),
    "IMCS-V2-NER": Task(_entities, "micro"),
    "CHIP-MDCFNPC": Task(_attributes("不标注"), "micro"),
    "IMCS-V2-SR": Task(_attributes("无法根据上下文确定病人是否患有该症状"), "micro"),
    "IMCS-V2-DAC": Task(_stripped, "macro", for_empty=_OTHER),
    "IMCS-V2-MRG": Task(_report, "rouge", "rougeL"),
    "CHIP-CTC": Task(_stripped, "macro", for_empty=_OTHER),
    "CHIP-STS": Task(_same_or_not, "weighted", for_empty="是的"),
    "KUAKE-IR": Task(_stripped, "weighted", for_empty="相关"),
    "KUAKE-QIC": Task(_stripped, "macro", for_empty=_OTHER),
    "KUAKE-QQR": Task(_stripped, "weighted", for_empty="完全一致"),
    "KUAKE-QTR": Task(_stripped, "weighted", for_empty="完全不匹配或者没有参考价值"),
    "MedDG": Task(_stripped, "rouge", "rougeL"),
}
"""The tasks in the order of the benchmark's report."""

ALIASES = {"CMeIE-V2": "CMeIE"}
"""Names that later releases of the data use."""

_NEED_CHOICES = ("CMeEE-V2", "CHIP-CDN", "IMCS-V2-NER", "CHIP-MDCFNPC", "IMCS-V2-SR")
"""Tasks whose answers cannot be read without the row's `answer_choices`."""


@dataclass(frozen=True)
class Row:
    """A row of the test set: what is needed to read an answer to it, and the reference, read."""

    task: str
    named: str
    """The task as the data call it."""
    id: str
    choices: Choices
    reference: Any


def scorer(samples: Sequence[Sample]) -> Callable[[Sequence[str]], dict[str, Any]]:
    """What scores answers to a test set, and makes of them the `submission` that the competition takes."""
    rows = read_rows(samples)
    return lambda answers: {**score_answers(rows, answers), "submission": submission(rows, answers)}


def read_rows(samples: Sequence[Sample]) -> list[Row]:
    """Checks the rows of a test set; raises `DataError` for one that the benchmark's scorer could not use."""
    return [_row(sample) for sample in samples]


def _row(sample: Sample) -> Row:
    values, place = sample.record.values, sample.record.place
    named = values.get("task_dataset")
    task = ALIASES.get(str(named), str(named))
    if task not in TASKS:
        raise DataError(f"{place} is of no known task", found=f"task_dataset: {named!r}", expected=", ".join(TASKS))
    choices = values.get("answer_choices") or ()
    kinds = (list, tuple, str) if task == "CHIP-CDN" else (list, tuple)
    if task in _NEED_CHOICES and not (choices and isinstance(choices, kinds)):
        found = f"answer_choices: {values.get('answer_choices')!r}"
        raise DataError(f"{place} cannot be scored", found=found, expected=f"the list of choices of {task}")
    if TASKS[task].metric in ("macro", "weighted") and not sample.reference.strip():
        raise DataError(f"{place} has an empty reference answer", expected=f"a label of {task}")
    return Row(task, str(named), sample.id or "xxxx", choices, parse_answer(task, sample.reference, choices))


def parse_answer(task: str, text: str, choices: Choices = ()) -> Any:
    """The structure of an answer: items of an extraction task, sections of a report, else a string; takes any text."""
    return TASKS[task].parse(text, choices)


def submission(rows: Sequence[Row], answers: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """What the competition takes as results.json: by task, `sample_id` and parsed `answer` in the test set's order."""
    parsed: dict[str, list[dict[str, Any]]] = {}
    for row, text in zip(rows, answers, strict=True):
        answer = {"sample_id": row.id, "answer": parse_answer(row.task, text, row.choices)}
        parsed.setdefault(row.named, []).append(answer)
    return parsed


def score_answers(rows: Sequence[Row], answers: Sequence[str]) -> dict[str, Any]:
    """`overall`, the mean of the tasks' counted figures, and `tasks`: the figures of each, fractions from 0 to 1."""
    pairs: dict[str, list[tuple[Any, Any]]] = {}
    for row, text in zip(rows, answers, strict=True):
        pairs.setdefault(row.task, []).append((parse_answer(row.task, text, row.choices), row.reference))
    tasks = {name: score_task(name, *zip(*pairs[name], strict=True)) for name in TASKS if name in pairs}
    counted = [figures[TASKS[name].counted] for name, figures in tasks.items()]
    return {"overall": sum(counted) / len(counted), "num_tasks": len(tasks), "tasks": tasks}


def score_task(name: str, predicted: Sequence[Any], expected: Sequence[Any]) -> dict[str, Any]:
    """The published figures of one task."""
    task = TASKS[name]
    if task.metric == "micro":
        figures = match_all(zip(map(_keys, predicted), map(_keys, expected), strict=True)).to_dict()
        return {**figures, "average": "micro", "num_samples": len(expected)}
    if task.metric == "rouge":
        pairs = [pair for both in zip(predicted, expected, strict=True) for pair in _texts(*both)]
        rows = [rouge(*pair) for pair in pairs]
        means = {
            key: sum(row[key] for row in rows) / len(rows) if rows else 0.0 for key in ("rouge1", "rouge2", "rougeL")
        }
        return {**means, "num_samples": len(expected)}
    labels = [label or task.for_empty for label in predicted]
    return {**label_scores(labels, expected, task.metric), "num_samples": len(expected)}


def _keys(items: Items) -> list[str]:
    """Items as the scorer compares them: by their values in the order of their sorted keys."""
    return [json.dumps([item[key] for key in sorted(item)], ensure_ascii=False) for item in items]


def _texts(predicted: Any, expected: Any) -> list[tuple[str, str]]:
    """Hypothesis and reference: of a reply, or of every section that the expected report has."""
    if isinstance(expected, str):
        return [(predicted, expected)]
    return [(predicted.get(name, "").strip(), text.strip()) for name, text in expected.items()]
