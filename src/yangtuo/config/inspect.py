"""The options of `yangtuo inspect`."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from cyclopts import Parameter

from yangtuo.config.options import InputPath, StageConfig

_AFTER = {
    "model": "yangtuo chat --model {path}",
    "adapter": "yangtuo merge --base BASE --adapter {path} --output NAME",
    "tokenizer": "yangtuo expand --model BASE --tokenizer {path} --text TEXTS --output NAME",
    "dataset": "yangtuo pretrain --model MODEL --data {path} --output NAME",
    "export": "yangtuo publish --artifact {path} --to OWNER/NAME --licence LICENCE --dry-run",
    "evaluation": "yangtuo publish --artifact MODEL --scores {path} --to OWNER/NAME --licence LICENCE --dry-run",
}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class InspectConfig(StageConfig):
    """Says what a directory is: kind, architecture, rows, pieces, lineage.

    Example: `yangtuo inspect models/llama-7b-zh`
    """

    verb: ClassVar[str] = "inspect"
    path: InputPath = field(kw_only=False)
    """An artifact, a model or adapter directory, or a hub id."""
    verify: Annotated[bool, Parameter(negative="")] = False
    """Hash all files again and compare with the manifest."""
    sums: InputPath | None = None
    """Compare with the SHA-256 sums of this file instead, as others publish them: lines with a sum and a file name."""

    def next_command(self, result: Mapping[str, Any]) -> str | None:
        """What is usually done with a thing of its kind."""
        command = _AFTER.get(str(result.get("kind")))
        return command and command.format(path=shlex.quote(self.path))
