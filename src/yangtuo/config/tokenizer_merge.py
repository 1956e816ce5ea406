"""The options of `yangtuo tokenizer merge`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from cyclopts import Parameter

from yangtuo.config.options import InputPath, StageConfig, Words


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TokenizerMergeConfig(StageConfig):
    """Joins learned pieces to a base tokenizer; the base's ids never move.

    Example: `yangtuo tokenizer merge --base models/llama-7b --pieces pieces --output tokenizers/llama-zh`
    """

    verb: ClassVar[str] = "tokenizer merge"
    following: ClassVar[str] = "yangtuo expand --model {base} --tokenizer {output} --text TEXTS --output {beside}/grown"
    base: InputPath
    """The tokenizer to extend: a directory, a tokenizer.model or a tokenizer.json."""
    pieces: InputPath
    """The pieces: what `yangtuo tokenizer train` wrote, or any SentencePiece model."""
    output: Path
    """The tokenizer directory to write."""
    style: Literal["faithful", "published"] = "faithful"
    """faithful keeps the base's segmentation of everything else; published follows Chinese-LLaMA's score-0 recipe."""
    script: Words = ()
    """Unicode scripts that new pieces may be made of (faithful style); repeatable. Default: those that the pieces were
    learned for, Han for pieces of other tools."""
    add_token: Words = ()
    """A token to append after the pieces, such as [PAD]; repeatable."""
