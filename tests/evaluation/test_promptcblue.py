"""PromptCBLUE: the structures and figures that the benchmark's own scorer gives, whatever text a model writes."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from yangtuo.errors import DataError
from yangtuo.evaluation.answers import read_predictions, read_samples
from yangtuo.evaluation.promptcblue import (
    ALIASES,
    TASKS,
    parse_answer,
    read_rows,
    score_answers,
    score_task,
    submission,
)
from yangtuo.evaluation.rouge import rouge, tokenize

TOLERANCE = 1e-9


@pytest.fixture(scope="session")
def scoring(shared_data: Path) -> Path:
    """What the original scorer made of gold answers and predictions."""
    return shared_data / "instruct" / "promptcblue" / "scoring"


def load(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def in_order(task: str, answer: Any) -> Any:
    """The original does not define the order of chosen terms."""
    return sorted(answer, key=lambda item: item["entity"]) if task == "CHIP-CDN" else answer


def test_structures_and_figures_are_those_of_the_original_scorer(scoring: Path) -> None:
    samples = read_samples(scoring / "gold_dev.jsonl")
    rows = read_rows(samples)
    files = sorted((scoring / "predictions").iterdir())
    assert files
    for file in files:
        answers = read_predictions(file, samples)
        parsed = submission(rows, answers)
        expected = load(scoring / "structured" / file.name)
        assert parsed.keys() == expected.keys()
        for task, actual in parsed.items():
            for one, other in zip(actual, expected[task], strict=True):
                assert one["sample_id"] == other["sample_id"]
                assert in_order(task, one["answer"]) == in_order(task, other["answer"])
        figures, published = score_answers(rows, answers), load(scoring / "scores.json")[file.stem]
        assert figures["overall"] == pytest.approx(published["overall"], abs=TOLERANCE)
        assert list(figures["tasks"]) == list(TASKS)
        for task, values in published["tasks"].items():
            for key, value in values.items():
                if key != "accuracy_not_printed":
                    assert figures["tasks"][task][key.removeprefix("macro-")] == pytest.approx(value, abs=TOLERANCE)


def test_single_answers_are_read_and_scored_as_by_the_original(scoring: Path) -> None:
    cases = load(scoring / "small_cases.json")
    for case in cases["parse"]:
        task = ALIASES.get(case["task_dataset"], case["task_dataset"])
        answer = parse_answer(task, case["target"], case["answer_choices"] or ())
        assert in_order(task, answer) == in_order(task, case["answer"])
    for case in cases["rouge"]:
        assert tokenize(case["hypothesis"]) == case["hypothesis_tokens"]
        scores = rouge(case["hypothesis"], case["reference"])
        assert scores == pytest.approx({key: case[key] for key in scores}, abs=TOLERANCE)
    for task, kind in (("", "classification"), ("CMeEE-V2", "extraction"), ("IMCS-V2-MRG", "report_sections")):
        for case in cases[kind]:
            figures = score_task(case.get("task", task), case["pred"], case["gold"])
            published = {key: case[key] for key in figures if key in case and key != "average"}
            assert {key: figures[key] for key in published} == pytest.approx(published, abs=TOLERANCE)


# Written down by hand from the published rules, so that they hold where the original's files are absent.
@pytest.mark.parametrize(
    ("task", "choices", "text", "answer"),
    [
        ("CMeEE-V2", ["疾病"], "疾病实体：肺炎，，感冒。\n 疾病实体：咳", [("疾病", "肺炎"), ("疾病", "感冒。")]),
        (
            "CHIP-CDN",
            ["发热", "咳嗽"],
            "标准词：\n咳嗽，发热，咳嗽，无",
            [("normalization", "咳嗽"), ("normalization", "发热")],
        ),
        ("CHIP-MDCFNPC", ["阳性"], "发热：阳性\n头痛：阳性\n咳嗽：阳性 \n咽痛", [("阳性", "头痛"), ("不标注", "咳嗽")]),
    ],
)
def test_quirks_are_the_published_ones(task: str, choices: Sequence[str], text: str, answer: list[Any]) -> None:
    parsed = parse_answer(task, text, choices)
    assert [(item.get("type", item.get("attr")), item["entity"]) for item in parsed] == answer


def test_an_event_keeps_the_last_value_and_offers_the_rest_to_later_keys() -> None:
    events = parse_answer("CHIP-CDEE", "头\n主体词：发生状态：否定；描述词：轻，重\n")
    first = {"主体词": "发生状态：否定", "发生状态": "否定", "描述词": ["轻", "重"], "解剖部位": []}
    assert events == [first, {"主体词": "", "发生状态": "", "描述词": [], "解剖部位": []}]


def test_an_empty_label_counts_as_the_published_default() -> None:
    figures = score_task("CHIP-STS", ["", "不是"], ["是的", "不是"])
    assert figures["f1"] == 1.0


def test_any_text_is_read_and_scored() -> None:
    alphabet = [
        "，",
        "；",
        "：",
        "。",
        "\n",
        " ",
        "\u3000",
        "\r",
        "\0",
        "\ud800",
        "👍",
        "e\u0301",
        "实体",
        "疾病",
        "具有",
    ]
    alphabet += [
        "关系的头尾实体对如下：",
        "头实体为",
        "，尾实体为",
        "主体词",
        "描述词",
        "主诉",
        "上述",
        "A",
        "\u202e",
        "{",
        '"',
    ]
    generator = random.Random(17)
    for task in TASKS:
        for _ in range(150):
            text = "".join(generator.choices(alphabet, k=generator.randrange(30)))
            answer = parse_answer(task, text, ["疾病", "上述"])
            score_task(task, [answer], [answer or TASKS[task].for_empty])


def row(**changes: Any) -> dict[str, Any]:
    base = {
        "input": "问",
        "target": "是的",
        "task_dataset": "CHIP-STS",
        "sample_id": "1",
        "answer_choices": ["是的", "不是"],
    }
    return {**base, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_dataset": "Text2DT"}, "no known task"),
        ({"target": None}, "no reference answer"),
        ({"target": " "}, "empty reference"),
        ({"task_dataset": "CMeEE-V2", "answer_choices": None}, "list of choices"),
        ({"task_dataset": "CMeEE-V2", "answer_choices": "疾病，药物"}, "list of choices"),
    ],
)
def test_a_reference_that_cannot_be_scored_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = tmp_path / "gold.jsonl"
    lines = [json.dumps(row(**values), ensure_ascii=False) for values in ({}, changes)]
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=message) as raised:
        read_rows(read_samples(file))
    assert "gold.jsonl:2" in str(raised.value)
