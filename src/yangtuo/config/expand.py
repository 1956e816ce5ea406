"""The options of `yangtuo expand`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from cyclopts import Parameter

from yangtuo.config.options import COMMAND, HOW, NO_OUTPUT, InputPath, InputPaths, OutputUnlessDry, Seed, StageConfig


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ExpandConfig(StageConfig):
    """Grows a model's embedding and head to a tokenizer's pieces.

    Example: `yangtuo expand --model models/llama-7b --tokenizer tokenizers/llama-zh --output models/llama-7b-zh`
    """

    verb: ClassVar[str] = "expand"
    following: ClassVar[str] = (
        "yangtuo prepare --source zh=TEXTS --source en=ENGLISH:0.2 --tokenizer {output} --output {beside}/data"
    )
    model: InputPath
    """The model to grow: a directory or a hub id."""
    tokenizer: InputPath
    """The tokenizer whose new pieces need rows; its old ids must be the model's."""
    output: OutputUnlessDry = NO_OUTPUT
    """The model directory to write; a dry run needs none."""
    init: Literal["distil", "cooccurrence", "subtoken-mean", "exponential", "mean", "random"] | None = None
    """How new rows start. distil: placed by cooccurrence, then learned from the base itself, which reads --text in its
    own pieces; a tied head is untied, and in the head rows of old tokens of the new language (characters, commas) learn
    too. cooccurrence: by the neighbours that their tokens have in --text. subtoken-mean: as the mean of the pieces that
    the base would have used; exponential: the last of them weighing most in the embedding, the first in the head. mean:
    of all rows; or random. When not given: distil with --text where the base reads the new language, else cooccurrence,
    and subtoken-mean without text."""
    text: InputPaths = ()
    """Texts in the new language and in the base's own, such as those to train on: neighbours are counted in them, and
    rows distilled; repeatable."""
    fit_head: bool = True
    """With cooccurrence: fit the head's new rows to the states that the model reaches in --text: one pass over at most
    16,000 tokens, a layer in memory at a time."""
    seed: Seed = 0
    """Seed of random rows, of the factors of cooccurrence and of the fit."""
    dry_run: Annotated[bool, HOW, COMMAND] = False
    """Only say what growing would save in --text, what it would cost, and how often new rows are met there."""
