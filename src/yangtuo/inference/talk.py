"""A talk of many turns with a model: what was said, how much of it still fits, and the commands that change it.

It prints and reads nothing; the terminal does.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from yangtuo.data.template import Message, Role
from yangtuo.errors import ConfigError, OutputError, ServingError, UserError
from yangtuo.files import read_json
from yangtuo.inference.conversation import Conversation
from yangtuo.inference.engine import Sampling

HELP = (
    "/reset forgets, /system TEXT sets the system prompt, /set NAME VALUE changes a setting, /retry asks again,\n"
    "/save FILE and /load FILE keep and bring back the talk, /exit or Ctrl-D ends; Ctrl-C cuts a reply short"
)
SETTINGS: dict[str, Any] = {
    **dict.fromkeys(("temperature", "top_p", "min_p"), Annotated[float, Field(ge=0, allow_inf_nan=False)]),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), Annotated[float, Field(ge=-2, le=2)]),
    "repetition_penalty": Annotated[float, Field(gt=0, le=10)],
    "max_tokens": Annotated[int, Field(gt=0)],
    "top_k": Annotated[int, Field(ge=0)],
    "seed": int,
}
"""What /set knows, with the types of the values."""


@dataclasses.dataclass
class Talk:
    """The state of a talk; `plain` has every text continued, without a template and without a memory."""

    conversation: Conversation
    sampling: Sampling
    plain: bool = False
    system: str | None = None
    turns: list[Message] = dataclasses.field(default_factory=list)
    num_forgotten: int = 0
    """How many of the oldest messages no longer fit before the last reply."""

    def say(self, text: str) -> Iterator[str]:
        """The reply to `text`, in parts; what has come of it is remembered, even where it is cut short."""
        self.turns = [] if self.plain else self.turns
        self.turns.append(Message("user", text))
        parts: list[str] = []
        try:
            for part in self._reply():
                shown = part if parts or self.plain else part.lstrip()
                if shown:
                    parts.append(shown)
                    yield shown
        finally:
            if parts:
                self.turns.append(Message("assistant", "".join(parts).rstrip()))
            else:
                self.turns.pop()

    def command(self, line: str) -> str | None:
        """Carries out a line that begins with a slash; what is to be said again is returned by /retry, else None.

        Raises `UserError` where it cannot be done.
        """
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name == "/reset":
            self.turns = []
        elif name == "/system":
            self.system = rest or None
        elif name == "/set":
            self._set(rest)
        elif name in ("/save", "/load"):
            if not rest:
                raise ConfigError(f"{name} needs the name of a file")
            self._save(Path(rest).expanduser()) if name == "/save" else self._load(Path(rest).expanduser())
        elif name == "/retry":
            while self.turns:
                if (last := self.turns.pop()).role == "user":
                    return last.content
            raise ConfigError("nothing has been said that could be asked again")
        else:
            raise ConfigError(f"there is no command {name}", expected=HELP)
        return None

    def _reply(self) -> Iterator[str]:
        if self.plain:
            encoder = self.conversation.encoder
            start = [encoder.bos_id] if encoder.bos_id is not None else []
            prompt = [*start, *encoder.encode(self.turns[-1].content)]
            self._require_room(prompt)
        else:
            prompt = self._fitting()
        limit = self.conversation.engine.context_length
        room = self.sampling.max_tokens if limit is None else min(self.sampling.max_tokens, limit - len(prompt))
        return self.conversation.continue_ids(
            prompt, self.conversation.with_stops(dataclasses.replace(self.sampling, max_tokens=room))
        )

    def _fitting(self) -> list[int]:
        """The prompt of as many of the last turns as leave room for a reply."""
        system = [Message("system", self.system)] if self.system else []
        for first in [index for index, turn in enumerate(self.turns) if turn.role == "user"]:
            prompt = self.conversation.prompt([*system, *self.turns[first:]])
            if self._fits(prompt):
                break
        self.num_forgotten = first
        self._require_room(prompt)
        return prompt

    def _fits(self, prompt: list[int]) -> bool:
        limit = self.conversation.engine.context_length
        return limit is None or len(prompt) + self._reserved(limit) <= limit

    def _reserved(self, limit: int) -> int:
        """Tokens kept for a reply: as many as it may have, but no more than half of what the model reads."""
        return min(self.sampling.max_tokens, limit // 2)

    def _require_room(self, prompt: list[int]) -> None:
        limit = self.conversation.engine.context_length
        if limit is not None and not self._fits(prompt):
            raise ServingError(
                "that is more than the model has room for",
                found=f"{len(prompt):,} tokens, and {self._reserved(limit):,} for the reply",
                expected=f"at most {limit:,}",
                run="/set max_tokens NUMBER, or say less",
            )

    def _set(self, rest: str) -> None:
        name, _, text = rest.partition(" ")
        if name not in SETTINGS:
            raise ConfigError(f"there is no setting {name!r}", expected=", ".join(SETTINGS))
        try:
            value: Any = TypeAdapter(SETTINGS[name]).validate_python(text)
        except ValidationError as error:
            raise ConfigError(f"{text!r} is no value of {name}", found=error.errors()[0]["msg"]) from error
        self.sampling = dataclasses.replace(self.sampling, **{name: value})

    def _save(self, path: Path) -> None:
        messages = [{"role": turn.role, "content": turn.content} for turn in self._all()]
        try:
            path.write_text(json.dumps({"messages": messages}, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error

    def _load(self, path: Path) -> None:
        messages = read_json(path, dict[str, list[dict[str, str]]]).get("messages", [])
        roles: tuple[Role, ...] = ("system", "user", "assistant")
        turns = [Message(role, turn["content"]) for turn in messages for role in roles if turn.get("role") == role]
        if not turns or len(turns) != len(messages):
            raise UserError(
                f"{path} holds no talk", expected='{"messages": [{"role": …, "content": …}]} as /save writes'
            )
        self.system = turns.pop(0).content if turns[0].role == "system" else None
        self.turns = turns

    def _all(self) -> list[Message]:
        return ([Message("system", self.system)] if self.system else []) + self.turns
