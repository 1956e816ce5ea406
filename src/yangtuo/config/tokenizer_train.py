"""The options of `yangtuo tokenizer train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from cyclopts import Parameter

from yangtuo.config.options import HOW, InputPath, InputPaths, Positive, StageConfig, Words


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TokenizerTrainConfig(StageConfig):
    """Learns new pieces for a base tokenizer from a corpus.

    Example: `yangtuo tokenizer train --base models/llama-7b --corpus texts/zh --size 8000 --output pieces`
    """

    verb: ClassVar[str] = "tokenizer train"
    base: InputPath
    """The tokenizer to extend: a directory, a tokenizer.model or a tokenizer.json."""
    corpus: InputPaths
    """Text to learn from: a file or a directory (txt, jsonl, csv, parquet, gz, zst); repeatable."""
    size: Positive
    """How many new pieces to learn."""
    output: Path
    """The directory of learned pieces to write."""
    script: Words = ("Han",)
    """Unicode scripts that new pieces may be made of, beside CJK punctuation where Han is among them; repeatable."""
    sample_bytes: Positive = 200_000_000
    """At most this many bytes of text are read into memory; larger corpora are sampled evenly."""
    dry_run: Annotated[bool, HOW] = False
    """Only say what would be learned and whether expansion is likely to pay."""
    training_tokens: Annotated[Positive | None, HOW] = None
    """With --dry-run: how many tokens of training are planned, so that it says whether they are enough."""
