"""The options of `yangtuo tokenizer train`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cyclopts import Parameter

from yangtuo.config.options import (
    COMMAND,
    HOW,
    NO_OUTPUT,
    InputPath,
    InputPaths,
    OutputUnlessDry,
    Positive,
    StageConfig,
    Words,
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TokenizerTrainConfig(StageConfig):
    """Learns new pieces for a base tokenizer from a corpus.

    Example: `yangtuo tokenizer train --base models/llama-7b --corpus texts/zh --size 8000 --output pieces`
    """

    verb: ClassVar[str] = "tokenizer train"
    following: ClassVar[str] = "yangtuo tokenizer merge --base {base} --pieces {output} --output {beside}/tokenizer"
    base: InputPath
    """The tokenizer to extend: a directory, a tokenizer.model or a tokenizer.json."""
    corpus: InputPaths
    """Text to learn from: a file or a directory (txt, jsonl, csv, parquet, gz, zst); repeatable."""
    size: Positive
    """How many new pieces to learn."""
    output: OutputUnlessDry = NO_OUTPUT
    """The directory of learned pieces to write; a dry run needs none."""
    language: str | None = None
    """The language to learn, such as zh, ja, ko, hi or sr-Latn, which says the scripts of its pieces."""
    script: Words = ()
    """Unicode scripts that new pieces may be made of instead (default: Han); repeatable. Latin stands for what English
    lacks; with --script ASCII beside it pieces may be English words, too, and English is cut otherwise."""
    widen: bool = False
    """For byte-level bases that cut words at vowel signs (Hindi, Thai, Tibetan): keep words of these scripts whole.
    transformers and vLLM read the result; llama.cpp cannot."""
    sample_bytes: Positive = 200_000_000
    """At most this many bytes of text are read into memory; larger corpora are sampled evenly."""
    dry_run: Annotated[bool, HOW, COMMAND] = False
    """Only say what would be learned and whether expansion is likely to pay."""
    training_tokens: Annotated[Positive | None, HOW] = None
    """With --dry-run: how many tokens of training are planned, so that it says whether they are enough."""
