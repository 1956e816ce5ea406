"""The options of `yangtuo tokenizer audit`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cyclopts import Parameter

from yangtuo.config.options import InputPath, InputPaths, Positive, StageConfig, Words


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TokenizerAuditConfig(StageConfig):
    """Measures a tokenizer against its base: compression, changed lines, dead pieces, engines that disagree.

    Example: `yangtuo tokenizer audit --tokenizer tokenizers/llama-zh --base llama-7b --text texts --output audit`
    """

    verb: ClassVar[str] = "tokenizer audit"
    following: ClassVar[str] = "yangtuo expand --model {base} --tokenizer {tokenizer} --text TEXTS --output grown"
    tokenizer: InputPath
    """The tokenizer to look at: a directory, a tokenizer.model or a tokenizer.json."""
    base: InputPath
    """The tokenizer that it was made from."""
    text: InputPaths
    """Texts to measure on, as [NAME=]PATH: a file or a directory, in the base's language and in the new one;
    repeatable."""
    output: Path | None = None
    """The directory for audit.json and index.html; without it the findings are only printed."""
    script: Words = ()
    """Unicode scripts of the new pieces; lines of other scripts should not have changed; repeatable. Default: those
    that the tokenizer was merged for, or that its new pieces are written in."""
    training_tokens: Positive | None = None
    """How many tokens of training are planned, so that the advice says whether they are enough."""
