"""lm_eval's own client at our server: whoever asks so gets what `evaluate` reports, question by question."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest

from yangtuo.data.template import get_template
from yangtuo.evaluation.exams import open_exam
from yangtuo.evaluation.measured import MeasuredModel
from yangtuo.inference.conversation import Conversation
from yangtuo.inference.transformers_engine import TransformersEngine
from yangtuo.serving.app import Front

from .conftest import served

pytest.importorskip("lm_eval", reason="needs the extra `eval`")
pytest.importorskip("tenacity", reason="needs lm_eval's own extra `api`")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning", "ignore::FutureWarning")


def write_questions(file: Path, count: int) -> None:
    generator = random.Random(3)
    words = ["apple", "river", "中国", "谢谢", "3.14", "snow"]
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "question", *"ABCD", "answer"])
        for number in range(count):
            writer.writerow([number, " ".join(generator.choices(words, k=5)), *generator.choices(words, k=4), "B"])


def test_each_question_is_answered_as_in_process(pico_model: Path, tmp_path: Path) -> None:
    from lm_eval import evaluator
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    write_questions(tmp_path / "law_val.csv", 8)
    exam, model = open_exam("ceval", tmp_path, 0, "lm-eval", False), MeasuredModel(pico_model)
    figures = exam.measure(model)
    engine = TransformersEngine(model.model)
    with served(Front({"pico": Conversation(engine, model.encoder, get_template("alpaca", None))})) as address:
        client = LocalCompletionsAPI(
            base_url=f"{address}/v1/completions",
            model="pico",
            tokenizer=str(pico_model),
            add_bos_token=True,
            batch_size=4,
        )
        results = evaluator.evaluate(client, exam._tasks(chat=False), bootstrap_iters=0)
    engine.close()
    for reply, sample in zip(figures["replies"], results["samples"]["ceval-valid_law"], strict=True):
        likelihoods = [response[0] for response in sample["filtered_resps"]]
        assert reply["log_likelihoods"] == pytest.approx(likelihoods, abs=1e-3)
        assert reply["right"] == bool(sample["acc"])
