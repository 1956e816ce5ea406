"""The options of `yangtuo prepare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from cyclopts import Parameter

from yangtuo.config.options import (
    COMMAND,
    HOW,
    NO_OUTPUT,
    DataPaths,
    InputPath,
    OutputUnlessDry,
    Positive,
    Seed,
    Share,
    StageConfig,
    parse_shard,
    shard_path,
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PrepareConfig(StageConfig):
    """Turns text into blocks of tokens on disk.

    Example: `yangtuo prepare --source zh=texts/zh --source en=texts/en:0.2 --tokenizer llama-7b-zh --output data`
    """

    verb: ClassVar[str] = "prepare"
    following: ClassVar[str] = "yangtuo pretrain --model {tokenizer} --data {output} --output {beside}/adapter"
    source: DataPaths
    """Text as [NAME=]PATH[:WEIGHT]: a file or directory; a weight of 0.2 takes a fifth of its tokens, 2 takes it
    twice; repeatable. NAME (zh, en) labels the source in every report."""
    tokenizer: InputPath
    """The tokenizer: a directory (a model's will do) or a bare file."""
    output: OutputUnlessDry = NO_OUTPUT
    """The dataset directory to write; a dry run needs none."""
    block_size: Positive = 512
    """Tokens in a training block."""
    held_out: Share = 0.02
    """Share of each source's tokens kept apart to measure bits per byte; too long a document is cut at a paragraph."""
    documents: Literal["file", "paragraph", "line"] = "file"
    """What one document of a text file is: the file, a paragraph between empty lines, or a line."""
    clean: bool = True
    """Mend what scanning and page layout did to a text: control characters, blanks inside Chinese, page numbers."""
    dedup: Literal["none", "exact", "near"] = "exact"
    """Which repeated documents are removed: none, equal ones, or those that share most of their text too."""
    decontaminate: DataPaths = ()
    """Evaluation sets (txt, csv, json, jsonl, parquet) whose passages are removed from the text; repeatable."""
    seed: Seed = 0
    """Seed of the held-out choice and of the sampling by weight."""
    shard: Annotated[str | None, HOW, COMMAND] = None
    """I/N makes the I-th of N shares of the work, as OUTPUT.shard-I-of-N, on any machine; with all of them beside the
    output, the same command without --shard joins them."""
    dry_run: Annotated[bool, HOW, COMMAND] = False
    """Write nothing: show figures and samples of blocks as the model sees them, from the beginning of each source."""

    def output_path(self) -> Path:
        """The dataset, or the share of it."""
        output = super().output_path()
        return output if self.shard is None else shard_path(output, *parse_shard(self.shard))

    def input_references(self) -> dict[str, tuple[str, ...]]:
        """All inputs; a share does not depend on all of the text, and its parts know what they were made of."""
        references = super().input_references()
        return {name: value for name, value in references.items() if self.shard is None or name != "source"}
