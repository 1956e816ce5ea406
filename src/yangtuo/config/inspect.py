"""The options of `yangtuo inspect`."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from cyclopts import Parameter

from yangtuo.config.options import InputPath, StageConfig


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
