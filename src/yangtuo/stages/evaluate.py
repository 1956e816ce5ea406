"""`yangtuo evaluate`: measures models and writes the figures as an artifact, `results.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from yangtuo import console
from yangtuo.artifacts.draft import draft
from yangtuo.artifacts.manifest import Artifact, Kind, open_artifact
from yangtuo.config.evaluate import EvaluateConfig
from yangtuo.config.options import split_source
from yangtuo.data.readers import read_documents
from yangtuo.errors import ConfigError
from yangtuo.evaluation.bits_per_byte import score_text
from yangtuo.evaluation.questions import Answered, ask, read_questions
from yangtuo.inference.conversation import Conversation, open_template
from yangtuo.inference.engine import Sampling
from yangtuo.inference.transformers_engine import TransformersEngine, load_model
from yangtuo.vocab.encoding import load_encoder


def run(config: EvaluateConfig) -> Artifact:
    """Measures every model on every data set; `results.json` maps model name -> data name -> figures."""
    names = [split_source(reference).name for reference in config.model]
    if len(set(names)) < len(names):
        raise ConfigError(
            "two models have the same name", found=", ".join(names), expected="--model NAME=PATH with names that differ"
        )
    models = {source.name: open_artifact(source.path, Kind.MODEL) for source in map(split_source, config.model)}
    with draft(config, Kind.EVALUATION, parents=models) as made:
        results: dict[str, dict[str, Any]] = {}
        for name, artifact in models.items():
            measure = _measure(config, artifact.path)
            results[name] = {source.name: measure(Path(source.path)) for source in map(split_source, config.data)}
        text = json.dumps(results, indent=2, ensure_ascii=False)
        (made.path / "results.json").write_text(text + "\n", encoding="utf-8")
        summary = {name: {data: _figures(values) for data, values in row.items()} for name, row in results.items()}
        made.describe(details={"suite": config.suite, "results": summary})
    _show(config, summary)
    return made.artifact


def _measure(config: EvaluateConfig, directory: Path) -> Callable[[Path], dict[str, Any]]:
    """What measures the model in `directory` on one file or directory of data."""
    model, encoder = load_model(directory), load_encoder(directory)
    if config.suite == "bits-per-byte":
        return lambda data: score_text(model, encoder, _texts(data), config.batch_size).to_dict()
    conversation = Conversation(TransformersEngine(model), encoder, open_template(directory))
    sampling = Sampling(max_new_tokens=config.max_new_tokens)
    return lambda data: _judged(ask(conversation, read_questions(data), sampling, config.batch_size))


def _texts(data: Path) -> list[str]:
    return [document.text for document in read_documents(data)]


def _judged(answered: Sequence[Answered]) -> dict[str, Any]:
    num_right = sum(row.right for row in answered)
    return {
        "num_questions": len(answered),
        "num_right": num_right,
        "share_right": round(num_right / len(answered), 4),
        "replies": [dataclasses.asdict(row) for row in answered],
    }


def _figures(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "replies"}


def _show(config: EvaluateConfig, summary: dict[str, dict[str, Any]]) -> None:
    rows = [
        [name, data, *(f"{value:g}" for value in figures.values())]
        for name, row in summary.items()
        for data, figures in row.items()
    ]
    keys = next(iter(next(iter(summary.values())).values()))
    console.stderr.print(console.table(config.suite, ["model", "data", *keys], rows))
