"""Exams of four choices: C-Eval, CMMLU, MMLU, Belebele, asked and scored by lm_eval (lm-evaluation-harness).

Prompts are lm_eval's own task definitions, read from its package; only where the questions come from is ours. C-Eval
can also be asked as Chinese-LLaMA-Alpaca did (generation constrained to the letters), so that its tables compare.
Accuracy is given over questions (lm_eval's group) and over subjects (C-Eval's paper), with intervals of 95 %.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from yangtuo.errors import ConfigError, DataError
from yangtuo.evaluation.exam_data import LAYOUTS, LETTERS, Paper, read_exam
from yangtuo.evaluation.intervals import mean_of_proportions, proportion
from yangtuo.evaluation.measured import MeasuredModel

_PREFIXES = {"ceval": "ceval-valid_", "cmmlu": "cmmlu_", "mmlu": "mmlu_", "belebele": "belebele_"}
_FOLDERS = {"mmlu": "mmlu/default"}
SUITES = tuple(_PREFIXES)
CONSTRAINED = "constrained"
_EXAMPLE = "{{question}}\nA. {{A}}\nB. {{B}}\nC. {{C}}\nD. {{D}}\n"


@dataclass(frozen=True)
class Exam:
    """An exam ready to be asked."""

    suite: str
    papers: Sequence[Paper]
    num_shots: int
    prompt: str
    chat: bool | None = None
    """Whether to ask in the chat template; None: where the model has one."""

    def measure(self, model: MeasuredModel) -> dict[str, Any]:
        """Accuracy by subject, by group and in all, or, without known answers, the `submission` alone."""
        from lm_eval import evaluator

        chat = model.template is not None if self.chat is None else self.chat
        if chat and model.template is None:
            raise ConfigError(
                f"{model.directory} has no chat template", expected="--no-chat, or a model that was taught to chat"
            )
        constrained = self.prompt == CONSTRAINED
        result = evaluator.evaluate(
            model.exam_model(constrained=constrained),
            self._tasks(chat),
            bootstrap_iters=0,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat and not constrained,
        )
        asked = "in its chat template" if chat else "plainly"
        figures = self._figures({paper.subject: result["samples"][self._name(paper)] for paper in self.papers})
        return {"prompt": self.prompt, "asked": asked, "num_shots": self.num_shots, **figures}

    def _name(self, paper: Paper) -> str:
        return f"{_PREFIXES[self.suite]}{paper.subject}"

    def _tasks(self, chat: bool) -> Any:
        """lm_eval's tasks, one a subject, over our rows."""
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=str(_task_folder(self.suite)), include_defaults=False)
        form = _constrained(chat) if self.prompt == CONSTRAINED else {}
        children = [
            {"task": self._name(paper), "num_fewshot": self.num_shots, "custom_dataset": self._dataset(paper), **form}
            for paper in self.papers
        ]
        return manager.load([{"group": self.suite, "task": children}])

    def _dataset(self, paper: Paper) -> Callable[..., Any]:
        """What lm_eval calls for the rows; where no answer is known, one is put in that nothing reads."""
        layout = LAYOUTS[self.suite]
        some_answer = 0 if self.suite == "mmlu" else layout.answers[0]
        rows = paper.rows if paper.has_answers else [{**row, layout.answer: some_answer} for row in paper.rows]
        shots = [dict(row) for row in paper.shots[: self.num_shots]]
        if shots and self.prompt == CONSTRAINED:
            # Its introduction stands before examples only, and in the user's own turn.
            introduction = f"以下是中国关于{paper.subject}考试的单项选择题，请选出其中的正确答案。\n\n"
            shots[0]["question"] = introduction + shots[0]["question"]

        def load(**_: Any) -> Any:
            import datasets

            questions, examples = datasets.Dataset.from_list(rows), datasets.Dataset.from_list(shots)
            return {"val": questions, "test": questions, "dev": examples}

        return load

    def _figures(self, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        answer = LAYOUTS[self.suite].answer
        replies = [
            _reply(paper, number, row, sample, answer)
            for paper in self.papers
            for number, (row, sample) in enumerate(zip(paper.rows, samples[paper.subject], strict=True))
        ]
        if not all(paper.has_answers for paper in self.papers):
            submission: dict[str, dict[str, str]] = {}
            for reply in replies:
                submission.setdefault(reply["subject"], {})[reply["id"]] = reply["predicted"]
            return {"num_questions": len(replies), "submission": submission, "replies": replies}
        counts = {name: (sum(int(row["acc"]) for row in rows), len(rows)) for name, rows in samples.items()}
        groups: dict[str, list[tuple[int, int]]] = {}
        for paper in self.papers:
            if paper.group:
                groups.setdefault(paper.group, []).append(counts[paper.subject])
        return {
            **_averages(list(counts.values())),
            "groups": {name: _averages(rows) for name, rows in sorted(groups.items())},
            "subjects": {name: _averages([count]) for name, count in counts.items()},
            "replies": replies,
        }


def open_exam(suite: str, path: Path, num_shots: int, prompt: str, chat: bool | None) -> Exam:
    """Reads the questions at `path`; raises where they cannot be asked in this form."""
    if prompt == CONSTRAINED and suite != "ceval":
        raise ConfigError(
            f"--prompt {CONSTRAINED} is a form of C-Eval's questions",
            found=f"--suite {suite}",
            expected="--suite ceval",
        )
    prefix = _PREFIXES[suite]
    known = {file.stem.removeprefix(prefix): file for file in _task_folder(suite).glob(f"{prefix}*.yaml")}
    papers = read_exam(suite, path)
    for paper in papers:
        if paper.subject not in known:
            close = get_close_matches(paper.subject, known, n=3)
            raise DataError(
                f"{path} has a subject that lm_eval's {suite} does not know",
                found=paper.subject,
                expected=", ".join(close) or f"one of its {len(known)} subjects",
            )
        paper.group = paper.group or _group(known[paper.subject])
        # Belebele has no dev split: examples are other questions of the same file.
        num_examples = len(paper.rows) - 1 if suite == "belebele" else len(paper.shots)
        if num_examples < num_shots:
            raise DataError(
                f"{path} has too few solved examples of {paper.subject} for --shots {num_shots}",
                found=f"{num_examples} rows",
                expected=f"--shots {num_examples} or fewer, or the dev files beside the questions",
            )
    return Exam(suite, papers, num_shots, prompt, chat)


def _group(task: Path) -> str | None:
    """The group that lm_eval counts a subject to, as MMLU's name one: `mmlu_stem_tasks` is stem."""
    match = re.search(r"^\W*tag\W+mmlu_(\w+)_tasks", task.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else None


def _task_folder(suite: str) -> Path:
    try:
        import lm_eval.tasks
    except ImportError as error:
        raise ConfigError(
            f"--suite {suite} needs lm_eval, which is not installed", run="pip install 'yangtuo[eval]'"
        ) from error
    return Path(str(lm_eval.tasks.__file__)).parent / _FOLDERS.get(suite, suite)


def _constrained(chat: bool) -> dict[str, Any]:
    """How a task differs where it is asked as Chinese-LLaMA-Alpaca's script asks (scripts/ceval, 2023)."""
    return {
        "description": "",
        "doc_to_text": _EXAMPLE + ("答案是什么？ " if chat else "答案："),
        "doc_to_choice": [*LETTERS, *(f" {letter}" for letter in LETTERS)],
        "doc_to_target": "{{['A', 'B', 'C', 'D'].index(answer)}}",
        "target_delimiter": "",
        "fewshot_config": {"sampler": "first_n", "split": "dev", "doc_to_text": _EXAMPLE + "答案："},
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "process_results": lambda row, results: {
            "acc": float(LETTERS[_likeliest([likelihood for likelihood, _ in results])] == row["answer"])
        },
    }


def _likeliest(log_likelihoods: Sequence[float]) -> int:
    """The choice whose spellings, one block of four behind the other, are likeliest together."""
    num_choices = len(LETTERS)
    sums = [sum(log_likelihoods[index::num_choices]) for index in range(num_choices)]
    return sums.index(max(sums))


def _reply(paper: Paper, number: int, row: Mapping[str, Any], sample: Mapping[str, Any], answer: str) -> dict[str, Any]:
    log_likelihoods = [round(float(response[0]), 5) for response in sample["filtered_resps"]]
    reply = {
        "subject": paper.subject,
        "id": str(row.get("id") or number),
        "predicted": LETTERS[_likeliest([response[0] for response in sample["filtered_resps"]])],
        "log_likelihoods": log_likelihoods,
    }
    return {**reply, "reference": row[answer], "right": bool(sample["acc"])} if paper.has_answers else reply


def _averages(counts: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Both averages of (right, all) by subject; of a single subject they are one."""
    num_right, num_all = (sum(column) for column in zip(*counts, strict=True))
    figures: dict[str, Any] = {"accuracy_over_questions": num_right / num_all, "num_questions": num_all}
    figures["accuracy_over_questions_interval"] = proportion(num_right, num_all)
    if len(counts) == 1:
        return {key.replace("_over_questions", ""): value for key, value in figures.items()}
    figures["accuracy_over_subjects"] = sum(right / total for right, total in counts) / len(counts)
    figures["accuracy_over_subjects_interval"] = mean_of_proportions(counts)
    return {**figures, "num_subjects": len(counts)}
