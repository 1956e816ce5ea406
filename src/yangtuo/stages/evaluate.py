"""`yangtuo evaluate`: measures models, or finished answers, and writes the figures as an artifact.

`results.json` maps the name of a model (or of a file of answers) to names of data and those to figures, with every
reply. promptcblue also writes each subject's parsed answers in the form that the competition takes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from yangtuo import console, page
from yangtuo.artifacts.draft import draft, refuse_existing
from yangtuo.artifacts.lineage import check_chain
from yangtuo.artifacts.manifest import Artifact, Kind, open_artifact
from yangtuo.config.evaluate import EvaluateConfig
from yangtuo.config.options import Source, is_address, split_source, split_sources
from yangtuo.data.readers import read_documents
from yangtuo.data.template import Message
from yangtuo.errors import ConfigError, DataError, raise_all
from yangtuo.evaluation import entities, exams, forgetting, promptcblue
from yangtuo.evaluation.answers import read_samples
from yangtuo.evaluation.bits_per_byte import score_text
from yangtuo.evaluation.measured import FinishedAnswers, MeasuredModel, ServedModel
from yangtuo.evaluation.questions import judge, read_questions
from yangtuo.evaluation.report import REPORT_FILE, evaluation_page
from yangtuo.evaluation.results import Figures, Results, headline, summarise, write
from yangtuo.hub import locate
from yangtuo.weights.checkpoint import CONFIG_FILE, read_json
from yangtuo.weights.shape import refuse_running_text

Measure = Callable[[Any], Figures]
_MAX_NEW_TOKENS = {"questions": 64, "ner": 256, "promptcblue": 512}


def run(config: EvaluateConfig) -> Artifact | dict[str, Any]:
    """Measures every subject on every data set; data are read first, so that bad ones cost no time."""
    if config.output is not None:
        refuse_existing(config.output)
    _check(config)
    measures = {source.name: _open(config, source) for source in _sources(config.data)}
    named = _sources(config.model)
    models = {source.name: open_artifact(source.path, Kind.MODEL) for source in named if not is_address(source.path)}
    adapters = [open_artifact(config.adapter, Kind.ADAPTER)] if config.adapter else []
    if adapters:
        raise_all(check_chain(list(models.values())[-1], adapters))
    if config.suite not in _MAX_NEW_TOKENS:
        for name, artifact in models.items():
            values = read_json(artifact.path / CONFIG_FILE)
            raise_all(refuse_running_text(name, values, f"--suite {config.suite}"))
    results = {
        name: {data: measure(subject) for data, measure in measures.items()}
        for name, subject in _subjects(config, models, adapters)
    }
    comparisons = forgetting.compare_all(results) if config.suite == "forgetting" else {}
    summary = summarise(results)
    details: dict[str, Any] = {"suite": config.suite, "results": summary}
    if comparisons:
        details["forgetting"] = comparisons
    elif len(summary) == len(measures) == 1:
        details |= next(iter(next(iter(summary.values())).values()))
    _show(config.suite, summary, comparisons)
    refusal = forgetting.refusal(comparisons, config.max_english_loss)
    if config.output is None:
        if refusal:
            raise refusal
        return details
    parents = models | dict(zip(("adapter",), adapters, strict=False))
    with draft(config, Kind.EVALUATION, parents) as made:
        write(made.path, results, comparisons)
        page.write(made.path / REPORT_FILE, evaluation_page(config.suite, results, comparisons))
        made.describe(details=details)
        if refusal:
            kept = _keep(made.path, config.output)
            console.note(f"the figures are kept in {kept}")
            raise refusal
    return made.artifact


def _keep(directory: Path, output: Path) -> Path:
    """Copies what was measured to a free name beside the output, which a refused step must not have."""
    names = (output.with_name(f"{output.name}-refused-{number}") for number in count(1))
    kept = next(name for name in names if not name.exists())
    shutil.copytree(directory, kept, ignore=shutil.ignore_patterns(".*"))
    return kept


def _sources(references: Sequence[str]) -> list[Source]:
    return [split_source(reference) for reference in references]


def _subjects(
    config: EvaluateConfig, models: Mapping[str, Artifact], adapters: Sequence[Artifact]
) -> Iterator[tuple[str, Any]]:
    """What is measured, by name; one model at a time is in memory."""
    if config.predictions:
        source = split_source(config.predictions)
        yield source.name, FinishedAnswers(Path(source.path))
    for source in _sources(config.model):
        if is_address(source.path):
            yield source.name, ServedModel(source.path, config.batch_size)
            continue
        adapter = adapters[0].path if adapters and source.name == list(models)[-1] else None
        yield source.name, MeasuredModel(models[source.name].path, adapter, config.batch_size)


def _names(references: Sequence[str]) -> list[str]:
    return [source.name for source in _sources(references)]


def _check(config: EvaluateConfig) -> None:
    if bool(config.model) == bool(config.predictions):
        raise ConfigError(
            "what to evaluate is not clear",
            found="--model and --predictions" if config.model else "neither --model nor --predictions",
            expected="--model, or --predictions with answers that were computed before",
        )
    if config.adapter and not config.model:
        raise ConfigError("--adapter is put on a model", found="--predictions", expected="--model")
    if config.predictions and (config.suite not in ("ner", "promptcblue") or len(config.data) > 1):
        raise ConfigError(
            "--predictions holds the answers to one test set of ner or promptcblue",
            found=f"--suite {config.suite} with {len(config.data)} --data",
        )
    served = [source.path for source in _sources(config.model) if is_address(source.path)]
    if served and (config.suite not in _MAX_NEW_TOKENS or config.adapter):
        raise ConfigError(
            f"{served[0]} can be asked questions, and nothing else",
            found="--adapter" if config.adapter else f"--suite {config.suite}, which needs probabilities of tokens",
            expected="a model directory, or --suite " + ", ".join(_MAX_NEW_TOKENS),
        )
    if config.suite == "forgetting" and len(config.model) < 2:
        raise ConfigError(
            "--suite forgetting compares models", expected="the base as the first --model, then the others"
        )
    if config.max_english_loss is not None and not ("en" in _names(config.data) and config.suite == "forgetting"):
        raise ConfigError(
            "--max-english-loss judges the English text of --suite forgetting",
            found=f"--suite {config.suite} with --data {', '.join(_names(config.data))}",
            expected="--suite forgetting --data en=TEXT",
        )
    for option, references in (("--model", config.model), ("--data", config.data)):
        split_sources(option, references)


def _open(config: EvaluateConfig, source: Source) -> Measure:
    """Reads one data set, and returns what measures a subject on it."""
    suite, data = str(config.suite), locate(source.path, is_data=True)
    if suite == "forgetting":  # an exam where the data are called by its name, else text
        suite = source.name if source.name in exams.SUITES else "bits-per-byte"
    if suite == "bits-per-byte":
        texts = [document.text for document in read_documents(data)]
        if not any(text.strip() for text in texts):
            raise DataError(f"{source.path} holds no text to measure on", expected="at least one line")
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


def _show(suite: str, summary: Results, comparisons: Results) -> None:
    """A table with a row for each figure and a column for each subject, and what was lost or won."""
    headlines = {name: {data: headline(figures) for data, figures in row.items()} for name, row in summary.items()}
    rows = [(data, key) for data, figures in next(iter(headlines.values())).items() for key in figures]
    cells = [
        [f"{data}  {key}{console.meaning(key)}", *(row[data].get(key, "") for row in headlines.values())]
        for data, key in rows
    ]
    console.detail(console.table(suite, ["", *headlines], cells))
    for name, row in comparisons.items():
        for data, values in row.items():
            console.note(f"{name}, {data}: {forgetting.sentence(values)}")
