"""The options of `yangtuo export`."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from cyclopts import Parameter

from yangtuo.config.options import InputPath, Positive, StageConfig


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ExportConfig(StageConfig):
    """Writes a model for other programs: GGUF for llama.cpp, or Meta's own layout.

    Example: `yangtuo export --model models/llama-7b-zh-chat --format gguf --quantize q8_0 --output exports/q8`
    """

    verb: ClassVar[str] = "export"
    following: ClassVar[str] = "yangtuo chat --model {output}/model.gguf"
    model: InputPath
    """The model to write: a directory or a hub id."""
    format: Literal["gguf", "meta"]
    """gguf for llama.cpp and Ollama, or meta for consolidated.*.pth and params.json."""
    output: Path
    """The directory to write; with gguf it holds model.gguf and a Modelfile for Ollama."""
    adapter: InputPath | None = None
    """Write this LoRA adapter of the model alone, as adapter.gguf for llama.cpp's --lora; low-rank pairs only."""
    quantize: Literal[
        "keep", "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_0"
    ] = "keep"
    """Number format of the matrices in GGUF; keep writes that of the model."""
    shards: Positive = 1
    """Number of consolidated.*.pth in Meta's layout: model-parallel ranks."""

    def next_command(self, result: Mapping[str, Any]) -> str | None:
        """To talk with a GGUF file, or to see what other files hold."""
        inspect = f"yangtuo inspect {shlex.quote(str(self.output))}"
        return super().next_command(result) if self.format == "gguf" and self.adapter is None else inspect
