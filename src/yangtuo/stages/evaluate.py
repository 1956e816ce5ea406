"""`yangtuo evaluate`: measures models, or finished answers, and writes the figures as an artifact.

`results.json` maps the name of a model (or of a file of answers) to names of data and those to figures, with every
reply. promptcblue also writes each subject's parsed answers in the form that the competition takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from yangtuo import console
from yangtuo.artifacts.draft import draft, refuse_existing
from yangtuo.artifacts.manifest import Artifact, Kind, open_artifact
from yangtuo.config.evaluate import EvaluateConfig
from yangtuo.config.options import Source, split_source
from yangtuo.data.readers import read_documents
from yangtuo.data.template import Message
from yangtuo.errors import ConfigError
from yangtuo.evaluation import entities, exams, promptcblue
from yangtuo.evaluation.answers import read_samples
from yangtuo.evaluation.bits_per_byte import score_text
from yangtuo.evaluation.measured import FinishedAnswers, MeasuredModel
from yangtuo.evaluation.questions import judge, read_questions
from yangtuo.hub import locate

Figures = dict[str, Any]
Results = dict[str, dict[str, Figures]]
Measure = Callable[[Any], Figures]
_LONG = ("replies", "submission")  # what results.json or a file of its own holds and no summary shows
_MAX_NEW_TOKENS = {"questions": 64, "ner": 256, "promptcblue": 512}


def run(config: EvaluateConfig) -> Artifact | dict[str, Any]:
    """Measures every subject on every data set; data are read first, so that bad ones cost no time."""
    if config.output is not None:
        refuse_existing(config.output)
    _check(config)
    measures = {
        source.name: _open(config.suite, config, locate(source.path, is_data=True)) for source in _sources(config.data)
    }
    models = {source.name: open_artifact(source.path, Kind.MODEL) for source in _sources(config.model)}
    results = {
        name: {data: measure(subject) for data, measure in measures.items()}
        for name, subject in _subjects(config, models)
    }
    summary = {name: {data: _short(values) for data, values in row.items()} for name, row in results.items()}
    details: dict[str, Any] = {"suite": config.suite, "results": summary}
    if len(summary) == len(measures) == 1:
        details |= next(iter(next(iter(summary.values())).values()))
    _show(config.suite, summary)
    if config.output is None:
        return details
    with draft(config, Kind.EVALUATION, parents=models) as made:
        _write(made.path, results)
        made.describe(details=details)
    return made.artifact


def _sources(references: Sequence[str]) -> list[Source]:
    return [split_source(reference) for reference in references]


def _subjects(config: EvaluateConfig, models: Mapping[str, Artifact]) -> Iterator[tuple[str, Any]]:
    """What is measured, by name; one model at a time is in memory."""
    if config.predictions:
        source = split_source(config.predictions)
        yield source.name, FinishedAnswers(Path(source.path))
    for name, artifact in models.items():
        yield name, MeasuredModel(artifact.path, batch_size=config.batch_size)


def _check(config: EvaluateConfig) -> None:
    if bool(config.model) == bool(config.predictions):
        raise ConfigError(
            "what to evaluate is not clear",
            found="--model and --predictions" if config.model else "neither --model nor --predictions",
            expected="--model, or --predictions with answers that were computed before",
        )
    if config.predictions and (config.suite not in ("ner", "promptcblue") or len(config.data) > 1):
        raise ConfigError(
            "--predictions holds the answers to one test set of ner or promptcblue",
            found=f"--suite {config.suite} with {len(config.data)} --data",
        )
    for option, references in (("model", config.model), ("data", config.data)):
        names = [split_source(reference).name for reference in references]
        if len(set(names)) < len(names):
            raise ConfigError(
                f"two of --{option} have the same name",
                found=", ".join(names),
                expected=f"--{option} NAME=PATH with names that differ",
            )


def _open(suite: str, config: EvaluateConfig, data: Path) -> Measure:
    """Reads one data set, and returns what measures a subject on it."""
    if suite == "bits-per-byte":
        texts = [document.text for document in read_documents(data)]
        return lambda subject: score_text(subject.model, subject.encoder, texts, subject.batch_size).to_dict()
    if suite in exams.SUITES:
        return exams.open_exam(suite, data, config.shots, config.prompt, config.chat).measure
    max_new_tokens = config.max_new_tokens or _MAX_NEW_TOKENS[suite]
    if suite == "questions":
        questions = read_questions(data)
        prompts = [[Message("user", question.text)] for question in questions]
        return lambda subject: judge(questions, subject.replies(prompts, max_new_tokens))
    samples = read_samples(data)
    score = entities.scorer(samples) if suite == "ner" else promptcblue.scorer(samples)

    def measure(subject: Any) -> Figures:
        answers = subject.answers(samples, max_new_tokens)
        rows = zip(samples, answers, strict=True)
        replies = [{"id": sample.id, "reply": text, "reference": sample.reference} for sample, text in rows]
        return {**score(answers), "replies": replies}

    return measure


def _short(figures: Figures) -> Figures:
    return {key: value for key, value in figures.items() if key not in _LONG}


def _write(directory: Path, results: Results) -> None:
    for name, row in results.items():
        for data, figures in row.items():
            if "submission" in figures:
                _write_json(directory / f"submission-{name}-{data}.json", figures.pop("submission"))
    _write_json(directory / "results.json", results)


def _write_json(file: Path, values: Any) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _show(suite: str, summary: Results) -> None:
    """A table with a row for each figure and a column for each subject."""
    headlines = {name: {data: _headline(figures) for data, figures in row.items()} for name, row in summary.items()}
    rows = [(data, key) for data, figures in next(iter(headlines.values())).items() for key in figures]
    cells = [
        [f"{data}  {key}", *(f"{row[data][key]:.4g}" if key in row[data] else "" for row in headlines.values())]
        for data, key in rows
    ]
    console.stderr.print(console.table(suite, ["", *headlines], cells))


def _headline(figures: Figures) -> dict[str, float]:
    """The figures that are a measure and no count, and what counts of each part."""
    whole = {key: value for key, value in figures.items() if isinstance(value, float)}
    parts = {**figures.get("tasks", {}), **figures.get("by_type", {})}
    return whole | {f"{name} {key}": row[key] for name, row in parts.items() for key in ("f1", "rougeL") if key in row}
