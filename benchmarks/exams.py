"""A zero-shot pass over C-Eval: lm_eval's own `hf` model, one prompt at a time and in batches, and ours, in one run.

    python benchmarks/exams.py --model models/smollm2 --data ceval --questions 60

Prints seconds for the same questions, those of the processors (which hold on a busy machine too), the largest
difference between two log-likelihoods, and how many questions were decided otherwise. `--questions` takes so many,
spread evenly; without it, all.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from yangtuo.evaluation.exam_model import ExamModel
from yangtuo.evaluation.exams import open_exam
from yangtuo.inference.transformers_engine import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--questions", type=int)
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    model, tokenizer = load_model(arguments.model), AutoTokenizer.from_pretrained(arguments.model)
    requests = build_requests(arguments)
    print(f"{len(requests) // 4} questions of four choices")
    own = {"pretrained": model, "tokenizer": tokenizer, "backend": "causal"}
    subjects = {
        "lm_eval, one prompt at a time": HFLM(**own, batch_size=1, logits_cache=False),
        "lm_eval, one question at a time": HFLM(**own, batch_size=1),
        f"lm_eval, batches of {arguments.batch_size}": HFLM(**own, batch_size=arguments.batch_size),
        "ours": ExamModel(model, tokenizer, arguments.batch_size),
    }
    expected = None
    for name, lm in subjects.items():
        start, processor = time.perf_counter(), time.process_time()
        answers = [likelihood for likelihood, _ in lm.loglikelihood(requests, disable_tqdm=True)]
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
        expected = expected or answers
        worst = max(abs(one - other) for one, other in zip(answers, expected, strict=True))
        differing = sum(best(one) != best(other) for one, other in zip(fours(answers), fours(expected), strict=True))
        print(
            f"{name:>34}: {seconds:8.1f} s, {processor:8.1f} s of processors, "
            f"differs by at most {worst:.1e}, {differing} other decisions",
            flush=True,
        )


def build_requests(arguments: argparse.Namespace) -> list:
    exam = open_exam("ceval", arguments.data, arguments.shots, "lm-eval", False)
    requests = []
    for task in exam._tasks(chat=False)["tasks"].values():
        task.build_all_requests(rank=0, world_size=1)
        requests += task.instances
    step = max(1, len(requests) // 4 // (arguments.questions or len(requests)))
    chosen = [requests[index : index + 4] for index in range(0, len(requests), 4 * step)]
    return [request for four in chosen[: arguments.questions] for request in four]


def fours(values: list[float]) -> list[list[float]]:
    return [values[index : index + 4] for index in range(0, len(values), 4)]


def best(values: list[float]) -> int:
    return values.index(max(values))


if __name__ == "__main__":
    main()
