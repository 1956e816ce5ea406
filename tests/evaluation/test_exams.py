"""Exams: what lm_eval itself would say, question by question; both averages; bad files named first."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from yangtuo.data.template import get_template
from yangtuo.errors import ConfigError, DataError
from yangtuo.evaluation.exam_data import read_exam
from yangtuo.evaluation.exams import open_exam
from yangtuo.evaluation.measured import MeasuredModel

pytest.importorskip("lm_eval")
COLUMNS = ("id", "question", "A", "B", "C", "D", "answer")
# Libraries of lm_eval's own, at import and while it builds requests.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning", "ignore::FutureWarning")


def write_csv(file: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def questions(count: int, seed: int) -> list[dict[str, str]]:
    generator = random.Random(seed)
    words = ["apple", "river", "house", "green", "twenty", "中国", "老师", "谢谢", "3.14", "snow"]
    return [
        {
            "id": str(number),
            "question": f"下列 {' '.join(generator.choices(words, k=generator.randrange(2, 9)))} ____",
            **{letter: generator.choice(words) for letter in "ABCD"},
            "answer": generator.choice("ABCD"),
        }
        for number in range(count)
    ]


@pytest.fixture(scope="session")
def ceval(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects of very different size, in C-Eval's layout."""
    folder = tmp_path_factory.mktemp("ceval")
    for seed, (subject, count) in enumerate({"law": 22, "logic": 6}.items()):
        write_csv(folder / "val" / f"{subject}_val.csv", questions(count, seed))
        shots = [{**row, "explanation": "因为\n如此"} for row in questions(3, seed + 10)]
        write_csv(folder / "dev" / f"{subject}_dev.csv", shots, (*COLUMNS, "explanation"))
    mapping = {"law": {"name": "法学", "category": "Humanities"}, "logic": ["Logic", "逻辑学", "Humanities"]}
    (folder / "subjects.json").write_text(json.dumps(mapping), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def pico_chat_model(pico_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pico model with the template that it would have been taught."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(pico_model, folder)
    (folder / "chat_template.jinja").write_text(get_template("alpaca", None).render_jinja(), encoding="utf-8")
    return folder


def lm_evals_own(model: MeasuredModel, folder: Path, num_shots: int, chat: bool) -> dict[str, Any]:
    """Results of lm_eval as it comes: its tasks, its model, one question at a time."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.directory)
    lm = HFLM(pretrained=model.model, tokenizer=tokenizer, backend="causal", batch_size=1)
    tasks = open_exam("ceval", folder, num_shots, "lm-eval", None)._tasks(chat)
    return dict(evaluator.evaluate(lm, tasks, bootstrap_iters=0, apply_chat_template=chat, fewshot_as_multiturn=chat))


@pytest.mark.parametrize(("num_shots", "chat"), [(0, False), (2, False), (1, True)])
def test_each_question_is_answered_as_by_lm_eval_itself(
    ceval: Path, pico_model: Path, pico_chat_model: Path, num_shots: int, chat: bool
) -> None:
    model = MeasuredModel(pico_chat_model if chat else pico_model, batch_size=5)
    figures = open_exam("ceval", ceval, num_shots, "lm-eval", None).measure(model)
    expected = lm_evals_own(model, ceval, num_shots, chat)
    assert figures["asked"] == ("in its chat template" if chat else "plainly")
    for subject in ("law", "logic"):
        samples = expected["samples"][f"ceval-valid_{subject}"]
        replies = [reply for reply in figures["replies"] if reply["subject"] == subject]
        for reply, sample in zip(replies, samples, strict=True):
            likelihoods = [response[0] for response in sample["filtered_resps"]]
            assert reply["log_likelihoods"] == pytest.approx(likelihoods, abs=2e-4)
            assert reply["right"] == bool(sample["acc"])
            assert reply["reference"] == sample["doc"]["answer"]
    accuracies = {name: row["acc,none"] for name, row in expected["results"].items() if "acc,none" in row}
    by_subject = [accuracies["ceval-valid_law"], accuracies["ceval-valid_logic"]]
    assert figures["accuracy_over_subjects"] == pytest.approx(sum(by_subject) / 2)
    assert figures["accuracy_over_questions"] == pytest.approx((22 * by_subject[0] + 6 * by_subject[1]) / 28)
    assert figures["groups"]["Humanities"]["accuracy_over_questions"] == figures["accuracy_over_questions"]


def test_the_constrained_form_is_that_of_the_published_script(ceval: Path, pico_model: Path) -> None:
    """Tokens, sum of both spellings and repetition penalty, computed here in a plain loop."""
    from transformers import AutoTokenizer
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    model = MeasuredModel(pico_model, batch_size=4)
    figures = open_exam("ceval", ceval, 1, "constrained", None).measure(model)
    tokenizer = AutoTokenizer.from_pretrained(pico_model)
    with_space = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "ABCD"]
    bare = [tokenizer.encode(f"：{letter}")[-1] for letter in "ABCD"]
    assert with_space != bare
    example, *_ = read_csv(ceval / "dev" / "law_dev.csv")
    introduction = "以下是中国关于law考试的单项选择题，请选出其中的正确答案。\n\n"

    def shown(row: Mapping[str, str]) -> str:
        return row["question"] + "".join(f"\n{letter}. {row[letter]}" for letter in "ABCD") + "\n答案："

    rows = read_csv(ceval / "val" / "law_val.csv")
    for row, reply in zip(rows, figures["replies"], strict=False):
        prompt = introduction + shown(example) + f"{example['answer']}\n\n" + shown(row)
        ids = torch.tensor([tokenizer.encode(prompt)])
        with torch.inference_mode():
            logits = RepetitionPenaltyLogitsProcessor(1.1)(ids, model.model(ids).logits[:, -1])[0]
        sums = logits[with_space] + logits[bare]
        assert reply["predicted"] == "ABCD"[int(sums.argmax())]


def test_random_weights_score_chance(pico_model: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "val" / "law_val.csv", questions(300, 7))
    figures = open_exam("ceval", tmp_path, 0, "lm-eval", None).measure(MeasuredModel(pico_model, batch_size=32))
    low, high = figures["accuracy_interval"]
    assert low < 0.25 < high and high - low < 0.12


class Told(MeasuredModel):
    """Knows the answer to each question."""

    def exam_model(self, *, constrained: bool) -> Any:  # noqa: ARG002
        from lm_eval.models.dummy import DummyLM

        class Oracle(DummyLM):
            tokenizer = None

            def loglikelihood(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
                return [
                    (0.0 if request.args[1].strip() == request.doc["answer"] else -9.0, False) for request in requests
                ]

        return Oracle()


def test_who_is_told_the_answers_scores_everything(ceval: Path, pico_model: Path) -> None:
    figures = open_exam("ceval", ceval, 0, "lm-eval", False).measure(Told(pico_model))
    assert figures["accuracy_over_questions"] == figures["accuracy_over_subjects"] == 1.0
    assert 0.8 < figures["accuracy_over_questions_interval"][0] < figures["accuracy_over_questions_interval"][1] == 1.0


def test_questions_without_answers_become_a_submission(pico_model: Path, tmp_path: Path) -> None:
    rows = [{**row, "answer": ""} for row in questions(3, 1)]
    write_csv(tmp_path / "test" / "law_test.csv", rows, COLUMNS[:-1])
    figures = open_exam("ceval", tmp_path, 0, "lm-eval", None).measure(MeasuredModel(pico_model))
    assert not any(key.startswith("accuracy") for key in figures)
    assert list(figures["submission"]["law"]) == ["0", "1", "2"]
    assert set(figures["submission"]["law"].values()) <= set("ABCD")


MMLU = 'What is 1 + 1?,1,2,3,4,B\n"Two, three",a,b,c,d,A\n'


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_published_layouts_are_read(kind: str, tmp_path: Path) -> None:
    if kind == "csv":
        (tmp_path / "test").mkdir()
        (tmp_path / "test" / "anatomy_test.csv").write_text(MMLU)
        (paper,) = read_exam("mmlu", tmp_path)
    elif kind == "parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

        for subject in ("anatomy", "all"):
            (tmp_path / subject).mkdir()
            rows = {"question": ["q", "r"], "subject": [subject] * 2, "choices": [list("wxyz")] * 2, "answer": [1, 0]}
            parquet.write_table(pyarrow.table(rows), tmp_path / subject / "test-00000-of-00001.parquet")
        (paper,) = read_exam("mmlu", tmp_path)
    else:
        row = {"flores_passage": "p", "question": "q", **{f"mc_answer{i}": str(i) for i in range(1, 5)}}
        lines = [json.dumps({**row, "correct_answer_num": number}) for number in ("2", "1")]
        (tmp_path / "zho_Hans.jsonl").write_text("\n".join(lines))
        (paper,) = read_exam("belebele", tmp_path)
        assert (paper.subject, [row["correct_answer_num"] for row in paper.rows]) == ("zho_Hans", ["2", "1"])
        return
    assert (paper.subject, [row["answer"] for row in paper.rows], len(paper.rows[0]["choices"])) == (
        "anatomy",
        [1, 0],
        4,
    )


@pytest.mark.parametrize("suite", ["mmlu", "cmmlu", "belebele"])
def test_other_exams_are_asked_too(suite: str, pico_model: Path, tmp_path: Path) -> None:
    rows = questions(4, 3)
    if suite == "cmmlu":
        renamed = [{**row, "Question": row["question"], "Answer": row["answer"]} for row in rows]
        write_csv(tmp_path / "test" / "agronomy.csv", renamed, ("Question", *"ABCD", "Answer"))
        write_csv(tmp_path / "dev" / "agronomy.csv", renamed[:1], ("Question", *"ABCD", "Answer"))
    elif suite == "mmlu":
        for split in ("test", "dev"):
            (tmp_path / split).mkdir()
            (tmp_path / split / f"anatomy_{split}.csv").write_text(MMLU)
    else:
        row = {"flores_passage": "p", "question": "q", **{f"mc_answer{i}": str(i) for i in range(1, 5)}}
        lines = [json.dumps({**row, "question": f"q{number}", "correct_answer_num": number}) for number in (1, 2, 3)]
        (tmp_path / "zho_Hans.jsonl").write_text("\n".join(lines))
    figures = open_exam(suite, tmp_path, 1, "lm-eval", None).measure(MeasuredModel(pico_model))
    assert figures["num_questions"] == {"mmlu": 2, "cmmlu": 4, "belebele": 3}[suite]
    assert 0.0 <= figures["accuracy"] <= 1.0
    assert list(figures["groups"]) == (["stem"] if suite == "mmlu" else [])


def bad(change: str, folder: Path) -> None:
    rows = questions(2, 0)
    if change == "column":
        write_csv(folder / "val" / "law_val.csv", rows, tuple(name for name in COLUMNS if name != "C"))
    elif change == "answer":
        write_csv(folder / "val" / "law_val.csv", [rows[0], {**rows[1], "answer": "E"}])
    elif change == "some answers":
        write_csv(folder / "val" / "law_val.csv", [rows[0], {**rows[1], "answer": ""}])
    elif change == "empty":
        (folder / "val").mkdir()
        (folder / "val" / "law_val.csv").write_text("")
    elif change == "header":
        write_csv(folder / "val" / "law_val.csv", [])
    elif change == "subject":
        write_csv(folder / "val" / "laws_val.csv", rows)
    elif change == "split":
        write_csv(folder / "dev" / "law_dev.csv", rows)
    elif change == "question":
        write_csv(folder / "val" / "law_val.csv", [{**rows[0], "question": " "}])
    elif change == "mapping":
        write_csv(folder / "val" / "law_val.csv", rows)
        (folder / "subjects.json").write_text('{"law": 3}')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("column", r"law_val.csv:2 lacks C"),
        ("answer", r"law_val.csv:3 has an answer that is none of the choices"),
        ("some answers", "only some questions of law"),
        ("empty", "holds no questions"),
        ("header", "holds no questions"),
        ("subject", "does not know"),
        ("split", "val or test"),
        ("question", "empty question"),
        ("mapping", "no mapping of subjects"),
        ("nothing", "holds no file"),
    ],
)
def test_what_cannot_be_scored_is_named(change: str, message: str, tmp_path: Path) -> None:
    bad(change, tmp_path)
    with pytest.raises(DataError) as raised:
        open_exam("ceval", tmp_path, 0, "lm-eval", None)
    assert message.replace("\\", "") in str(raised.value)


def test_forms_that_do_not_fit_are_refused(ceval: Path, pico_model: Path) -> None:
    with pytest.raises(DataError, match="--shots 3 or fewer"):
        open_exam("ceval", ceval, 4, "lm-eval", None)
    with pytest.raises(ConfigError, match="C-Eval"):
        open_exam("cmmlu", ceval, 0, "constrained", None)
    with pytest.raises(ConfigError, match="no chat template"):
        open_exam("ceval", ceval, 0, "lm-eval", True).measure(MeasuredModel(pico_model))
