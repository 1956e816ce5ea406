"""The options of `yangtuo convert`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from cyclopts import Parameter

from yangtuo.config.options import InputPath, StageConfig


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ConvertConfig(StageConfig):
    """Turns published weights into a model directory that everything else reads.

    Example: `yangtuo convert --source ~/llama/7B --output models/llama-7b`
    """

    verb: ClassVar[str] = "convert"
    following: ClassVar[str] = (
        "yangtuo tokenizer train --base {output} --corpus TEXTS --size SIZE --output {beside}/pieces"
    )
    source: InputPath
    """Weights: a directory in Meta's layout (consolidated.*.pth, params.json, tokenizer.model), in Hugging Face's
    layout, a GGUF file, or a hub id."""
    output: Path
    """The model directory to write."""
    dtype: Literal["keep", "float32", "float16", "bfloat16"] = "keep"
    """Number format of the written weights; keep writes that of the source."""
