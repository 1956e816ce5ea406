"""The options of `yangtuo evaluate`."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from cyclopts import Parameter

from yangtuo.config.options import (
    HOW,
    DataPaths,
    InputPath,
    InputPaths,
    NonNegative,
    NonNegativeFloat,
    Positive,
    StageConfig,
    split_source,
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(StageConfig):
    """Measures models: bits per byte of text, exams, questions answered, entities found, medical tasks done.

    Example: `yangtuo evaluate --model base --model adapted --suite bits-per-byte --data zh=held-out-zh --output scores`
    """

    verb: ClassVar[str] = "evaluate"
    model: InputPaths = ()
    """A model as [NAME=]PATH: a directory, a hub id, or, for questions, ner and promptcblue, the address of a server of
    the OpenAI API, such as http://127.0.0.1:8000 (#MODEL behind it names one of several); repeatable."""
    adapter: InputPath | None = None
    """A PEFT adapter to put on the last --model; give that model twice, under two names, to see the difference."""
    predictions: InputPath | None = None
    """Instead of a model, a file of finished answers in the order of --data, as [NAME=]PATH (ner, promptcblue)."""
    suite: Literal[
        "bits-per-byte", "questions", "ceval", "cmmlu", "mmlu", "belebele", "ner", "promptcblue", "forgetting"
    ]
    """bits-per-byte reads text; questions asks each question of a JSON file and looks for its answers in the reply;
    ceval, cmmlu, mmlu and belebele are exams of four choices, asked by lm_eval; ner finds entities as in
    instruct/query/answer data; promptcblue is the benchmark's 16 medical tasks; forgetting compares later models with
    the first, item by item, on text and on exams (--data mmlu=DIR)."""
    data: DataPaths
    """What to measure on, as [NAME=]PATH: text, an exam's files as published, or rows with reference answers; a path or
    a hub id; repeatable."""
    output: Path | None = None
    """The directory of results to write; without it they are only printed."""
    max_new_tokens: Positive | None = None
    """Longest reply, in tokens; when not given, 64 for questions, 256 for ner and 512 for promptcblue."""
    shots: NonNegative = 0
    """Solved examples before each question of an exam, from its dev files."""
    prompt: Literal["lm-eval", "constrained"] = "lm-eval"
    """How an exam asks: as lm_eval does, or C-Eval as Chinese-LLaMA-Alpaca did; figures of the two do not compare."""
    chat: bool | None = None
    """Ask an exam in the model's chat template, or plainly; when not given, in the template where there is one."""
    max_english_loss: NonNegativeFloat | None = None
    """With forgetting: fail where bits per byte of --data en=TEXT rise by more than this share, such as 0.05."""
    batch_size: Annotated[Positive, HOW] = 16
    """Sequences in one forward pass."""

    def next_command(self, result: Mapping[str, Any]) -> str | None:  # noqa: ARG002
        """To share the last model with these figures, or to keep them."""
        if self.output is None:
            return "the same command with --output SCORES, to keep the figures"
        if not self.model:
            return f"yangtuo inspect {shlex.quote(str(self.output))}"
        artifact, scores = self.adapter or split_source(self.model[-1]).path, shlex.quote(str(self.output))
        to = "--to OWNER/NAME --licence LICENCE --dry-run"
        return f"yangtuo publish --artifact {shlex.quote(artifact)} --scores {scores} {to}"
