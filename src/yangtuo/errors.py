"""What can go wrong for a user, as a tree of exceptions.

    UserError                 exit status 2, one message: the problem, what was found, what was expected, what to run
    ├── ConfigError           a flag, a YAML key or a recipe
    ├── FileError             a file or directory that is missing, unreadable or malformed
    ├── OutputError           an output that exists, a full or read-only disk, another process writing there
    ├── LineageError          artifacts that do not belong together
    ├── DataError             text or conversations that can be read but not used
    ├── VocabularyError       a tokenizer, or a request for one, that cannot work
    ├── WeightsError          tensors that are missing, misshapen, damaged or not finite
    ├── TrainingError         a run that would train nothing, or has stopped training
    ├── EvaluationError       a measured figure that a gate refuses
    └── ServingError          an engine or server that cannot answer
        └── EngineError       an engine that failed while it computed: exit status 1

Only a user's mistake is raised from this tree; a mistake of ours is an assert (exit status 1).
This module knows nothing of the rest of the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class UserError(Exception):
    """A mistake that the user can mend; `str()` is the whole message as shown."""

    status: ClassVar[int] = 2
    """The exit status of a command that ends with it."""

    def __init__(
        self, problem: str, *, found: str | None = None, expected: str | None = None, run: str | None = None
    ) -> None:
        self.problem = problem
        self.found = found
        self.expected = expected
        self.run = run
        super().__init__(self._message())

    def _message(self) -> str:
        lines = [self.problem]
        if self.found is not None:
            lines.append(f"  found:    {self.found}")
        if self.expected is not None:
            lines.append(f"  expected: {self.expected}")
        if self.run is not None:
            lines.append(f"  run:      {self.run}")
        return "\n".join(lines)


class ConfigError(UserError):
    """A flag, a YAML key or a recipe that cannot be used."""


class FileError(UserError):
    """A file or directory that is missing, unreadable or malformed."""


class OutputError(UserError):
    """The output cannot be written: it exists, the disk is full, or another process is at it."""


class LineageError(UserError):
    """Artifacts that do not belong together."""


class DataError(UserError):
    """Text or conversations that can be read but not used."""


class VocabularyError(UserError):
    """A tokenizer, or a request for one, that cannot work."""


class WeightsError(UserError):
    """Tensors that are missing, misshapen, damaged or not finite."""


class TrainingError(UserError):
    """A run that would train nothing, or that has stopped training."""


class EvaluationError(UserError):
    """A measured figure that a gate refuses."""


class ServingError(UserError):
    """An engine or server that cannot answer."""


class EngineError(ServingError):
    """An engine that failed while it computed, which no other command line would have helped."""

    status = 1


def raise_all(errors: Sequence[UserError]) -> None:
    """Raises nothing for none, the error itself for one, and one error holding every message for several."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        kind = type(errors[0]) if len({type(error) for error in errors}) == 1 else UserError
        numbered = "\n".join(f"{number}. {error}" for number, error in enumerate(errors, 1))
        raise kind(f"{len(errors)} problems:\n{numbered}")
