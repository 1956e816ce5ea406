"""The options of `yangtuo publish`."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from cyclopts import Parameter

from yangtuo.config.options import InputPath, InputPaths, StageConfig, Words


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PublishConfig(StageConfig):
    """Uploads a model, an adapter, a tokenizer or an export to Hugging Face or ModelScope, with a card of its lineage.

    Example: `yangtuo publish --artifact models/llama-7b-zh --to owner/llama-7b-zh --licence llama2 --dry-run`
    """

    verb: ClassVar[str] = "publish"
    artifact: InputPath
    """The directory to upload, as yangtuo made it."""
    to: str
    """The repository: owner/name on Hugging Face, or modelscope:owner/name. One that is made is private."""
    licence: str
    """The licence of what is uploaded, by the hub's name for it: apache-2.0, mit, llama2, llama3.1, gemma, other …
    What a model was made from limits what its licence can be; nobody can guess it for you."""
    base: str | None = None
    """The hub id of the base, where the lineage knows only a directory."""
    scores: InputPaths = ()
    """What `yangtuo evaluate` or `yangtuo tokenizer audit` wrote about it, for the card; repeatable."""
    language: Words = ()
    """A language of it, such as zh or en, for the card; repeatable. When not given, those that its lineage names."""
    card: Path | None = None
    """The model card, a Markdown file: a dry run writes it here (NAME-card.md when not given), and an upload takes it
    from here instead of making one."""
    public: Annotated[bool, Parameter(negative="")] = False
    """Let everybody see it; otherwise it is uploaded into a private repository only."""
    dry_run: Annotated[bool, Parameter(negative="")] = False
    """Write the card, list the files, and upload nothing."""

    def next_command(self, result: Mapping[str, Any]) -> str | None:
        """To upload with the card that was written, or to see that what is there is what was sent."""
        if not self.dry_run:
            return f"yangtuo inspect {self.to}@{result['revision']} --verify"
        artifact, card = shlex.quote(self.artifact), shlex.quote(str(result["card"]))
        return f"yangtuo publish --artifact {artifact} --to {self.to} --licence {self.licence} --card {card}"
