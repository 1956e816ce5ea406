"""Prompts: the one place that writes them, for training, chat, serving and evaluation alike.

A template is a Jinja text, the one that stands in the model's `chat_template.jinja`. It is rendered with a mark in the
place of each message, so that what the template says is told from what a user says: control tokens are recognised in
the template's own text only, and text between two control tokens is tokenised in one go, as every engine that renders
the same Jinja does. This module reads no files of conversations and does not depend on weights.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from yangtuo.data.control_tokens import HIDDEN, MARK_BEGIN, MARK_END, Controls, find_controls
from yangtuo.data.records import compose
from yangtuo.errors import ConfigError, DataError, FileError, VocabularyError
from yangtuo.vocab.directory import is_ice_text, read_templates

if TYPE_CHECKING:
    import jinja2

    from yangtuo.vocab.encoding import Encoder


Role = Literal["system", "user", "assistant", "tool"]

_ALPACA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = 'Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.' %}{% endif %}{{ system }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '\\n\\n### Instruction:\\n' + message['content'] | trim + '\\n\\n### Response: ' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
_ALPACA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}"
    "{% set system = 'You are a helpful assistant. 你是一个乐于助人的助手。' %}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' }}{% if loop.first %}{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}{% endif %}"
    "{{ message['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim"
    " + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_LLAMA_3 = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}{{ '<|start_header_id|>' + message['role']"
    " + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
_GLM_ROUNDS = (
    "{% for message in turns %}{% if message['role'] == 'user' %}"
    "{{ '[Round ' ~ loop.index0 // 2 ~ ']\\n问：' + message['content'] + '\\n答：' }}"
    "{% else %}{{ message['content'] + '\\n' }}{% endif %}{% endfor %}"
)
_GLM = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% set messages = messages[1:] %}{% endif %}"
    "{% set answered = messages[-1]['role'] == 'assistant' %}"
    "{% set turns = messages[:-1] if answered else messages %}"
    "PROMPT{{ '[gMASK]<sop>' }}{% if answered %}{{ messages[-1]['content'] + '<eop>' }}{% endif %}"
)
# ChatGLM-6B's own: the first question stands bare, and only with turns before it in rounds, counted from 0.
_CHATGLM = _GLM.replace(
    "PROMPT", "{% if turns | length == 1 %}{{ turns[0]['content'] }}{% else %}" + _GLM_ROUNDS + "{% endif %}"
)
# PromptCBLUE's, where its rows have a column for earlier turns: the first question is a round too.
_CHATGLM_ROUNDS = _GLM.replace("PROMPT", _GLM_ROUNDS)
_KNOWN = {
    "alpaca": _ALPACA,
    "alpaca-2": _ALPACA_2,
    "chatml": _CHATML,
    "llama-3": _LLAMA_3,
    "chatglm": _CHATGLM,
    "chatglm-rounds": _CHATGLM_ROUNDS,
}
_LEARNS_START = {_CHATGLM, _CHATGLM_ROUNDS}
"""Templates whose published training scripts count the prompt's last control token, `<sop>`, in the loss."""
_REQUIRED: dict[str, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama-3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    **dict.fromkeys(("chatglm", "chatglm-rounds"), ("[gMASK]", "<sop>", "<eop>")),
}
_DEFAULT = "alpaca"
TEMPLATES = (*_KNOWN, "model")
"""The names that `get_template` knows."""

_SPACE = "\u2003"
_MARK = re.compile(f"({_SPACE}?){MARK_BEGIN}(\\d+){MARK_END}({_SPACE}?)")
_GENERATION = re.compile(r"{%-?\s*(?:end)?generation\s*-?%}")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else templates read: `tool_calls`, `reasoning_content`, `name`, `tool_call_id`."""
    learned: bool = True
    """Whether an answer counts in the loss."""

    def to_dict(self) -> dict[str, Any]:
        """The message as a chat template takes it."""
        return {"role": self.role, "content": self.content, **self.extra}


@dataclass(frozen=True)
class _Run:
    """A stretch of a rendered conversation: a control token's id, or text."""

    control: int | None
    text: str


@dataclass(frozen=True)
class Template:
    """A way of writing conversations for a model."""

    name: str
    jinja: str

    @property
    def fingerprint(self) -> str:
        """Identity of the template: SHA-256 of its Jinja text, hexadecimal."""
        return hashlib.sha256(self.jinja.encode()).hexdigest()

    def render_jinja(self) -> str:
        """The text of `chat_template.jinja`."""
        return self.jinja

    def encode_prompt(self, encoder: Encoder, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[int]:
        """Ids up to where the assistant answers, with BOS where the template has one."""
        return [token for tokens in _encode(encoder, self._runs(encoder, messages, True, tools)) for token in tokens]

    def encode_conversation(
        self, encoder: Encoder, messages: Sequence[Message], tools: Sequence[Any] = ()
    ) -> tuple[list[int], list[bool]]:
        """Ids of a conversation that ends with an answer, and which of them are learned: answers and their EOS.

        What stands before the last answer is exactly `encode_prompt` of the messages before it; where the template
        puts no stop token behind an answer, EOS is put there.
        """
        assert messages and messages[-1].role == "assistant", "a conversation to learn from ends with an answer"
        self._require_written(encoder, messages, tools)
        prompt = self._runs(encoder, messages[:-1], True, tools)
        tokens = _encode(encoder, prompt)
        learned = [[False] * len(part) for part in tokens]
        stops = set(self.stop_ids(encoder))
        for index, message in enumerate(messages[:-1]):
            if message.role == "assistant" and message.learned:
                before = self._runs(encoder, messages[:index], True, tools)
                self._learn_earlier(encoder, (prompt, before), learned, stops)
        answer = _rest(prompt, self._runs(encoder, messages, False, tools))
        if answer is None:
            raise DataError(
                f"the template {self.name} does not write the answer behind the prompt that asks for it",
                expected="a template whose conversation begins with its own generation prompt",
                run="yangtuo sft with another --template: " + ", ".join(_KNOWN),
            )
        stop = next((number for number, run in enumerate(answer) if run.control in stops), None)
        if stop is None:
            answer, stop = [*answer, _Run(self._eos(encoder), "")], len(answer)
        if self.jinja in _LEARNS_START:
            learned[-1] = [True]
        behind = _encode(encoder, answer, continues=bool(prompt) and prompt[-1].control is None)
        ids = [token for part in tokens + behind for token in part]
        num_learned = sum(len(part) for part in behind[: stop + 1])
        mask = [flag for part in learned for flag in part] + [messages[-1].learned] * num_learned
        return ids, mask + [False] * (len(ids) - len(mask))

    def stop_ids(self, encoder: Encoder) -> list[int]:
        """Ids at which generation ends: what the template puts behind an answer, and EOS."""
        return list(self._stop_ids(find_controls(encoder)))

    def _learn_earlier(
        self, encoder: Encoder, runs: tuple[list[_Run], list[_Run]], learned: list[list[bool]], stops: set[int]
    ) -> None:
        """Marks the answer that follows the prompt `runs[1]` within the longer prompt `runs[0]`."""
        whole, before = runs
        if _rest(before, whole) is None:
            return  # the template rewrites earlier turns: what it shows there was never asked for
        number = len(before) - (before[-1].control is None)
        if number < len(before):
            spent = _common(_encode(encoder, [before[-1]])[0], _encode(encoder, [whole[number]])[0])
            learned[number][spent:] = [True] * (len(learned[number]) - spent)
            number += 1
        while number < len(whole):
            learned[number] = [True] * len(learned[number])
            if whole[number].control in stops:
                return
            number += 1

    def _require_written(self, encoder: Encoder, messages: Sequence[Message], tools: Sequence[Any]) -> None:
        """Raises `DataError` for tools that the template would pass over, or write as somebody's words."""
        missing = "descriptions of tools" if tools and "tools" not in self.jinja else ""
        if any("tool_calls" in message.extra for message in messages) and "tool_calls" not in self.jinja:
            missing = "calls of tools"
        if any(message.role == "tool" for message in messages) and "tool" not in self.jinja:
            controls = find_controls(encoder)
            if "tool" not in _render(self.jinja, ("user", "assistant", "tool"), True, controls.bos, controls.eos):
                missing = "results of tools"
        if missing:
            raise DataError(f"{missing}, which the template {self.name} does not write")

    def _runs(
        self, encoder: Encoder, messages: Sequence[Message], answering: bool, tools: Sequence[Any] = ()
    ) -> list[_Run]:
        controls = find_controls(encoder)
        turns: list[Any] = [message.to_dict() for message in messages]
        if not tools and not any(message.extra for message in messages):
            roles = tuple(message.role for message in messages)
            rendered = _render(self.jinja, roles, answering, controls.bos, controls.eos)
            runs = _split(rendered, dict(enumerate(message.content for message in messages)), controls)
            if self.name in _KNOWN:
                return runs
            # A model's own template may look into messages: cut a "</think>" off, say. Then it has to see them.
            shown = render_text(self.jinja, turns, answering, controls.bos, controls.eos)
            if shown == "".join(run.text for run in runs):
                return runs
        hidden = _each_text([turns, list(tools)], controls.hide)
        veiled = _each_text(hidden, controls.veil)
        for turn, plain in zip(veiled[0], turns, strict=True):
            turn["role"] = plain["role"]
        rendered, safe = (
            render_text(self.jinja, shown[0], answering, controls.bos, controls.eos, shown[1])
            for shown in (hidden, veiled)
        )
        runs = _split(rendered, dict(enumerate(controls.hidden)), controls, hidden=True)
        safe_runs = [
            run if run.control is not None else _Run(None, controls.unveil(run.text))
            for run in _split(safe, dict(enumerate(controls.hidden)), controls, hidden=True)
        ]
        if "".join(run.text for run in runs) == "".join(run.text for run in safe_runs):
            return safe_runs
        if [run.control for run in runs if run.control] != [run.control for run in safe_runs if run.control]:
            raise DataError(
                f"the template {self.name} makes control tokens out of what a message says",
                expected="a template that writes messages as they are",
                run="the same command with another --template",
            )
        return runs

    def _stop_ids(self, controls: Controls) -> tuple[int, ...]:
        rendered = _render(self.jinja, ("user", "assistant"), False, controls.bos, controls.eos)
        if MARK_BEGIN not in rendered:
            raise DataError(f"the template {self.name} does not write the messages", found=rendered[:60] or "nothing")
        behind = _split(rendered[rendered.rindex(MARK_BEGIN) :], {0: "", 1: ""}, controls)
        stops = [run.control for run in behind if run.control is not None][:1]
        return tuple(dict.fromkeys(stops + ([controls.eos_id] if controls.eos_id is not None else [])))

    def _eos(self, encoder: Encoder) -> int:
        if encoder.eos_id is None:
            raise VocabularyError(
                f"the template {self.name} ends answers with EOS, and this tokenizer has none",
                expected="a tokenizer with an EOS token",
            )
        return encoder.eos_id


@lru_cache(maxsize=1024)
def _render(jinja: str, roles: tuple[Role, ...], answering: bool, bos: str, eos: str) -> str:
    """The conversation with a mark for each message; the marks' spaces show whether the template trims."""
    marks = [{"role": role, "content": f"{_SPACE}{MARK_BEGIN}{at}{MARK_END}{_SPACE}"} for at, role in enumerate(roles)]
    return render_text(jinja, marks, answering, bos, eos)


def render_text(
    jinja: str, turns: Sequence[Mapping[str, Any]], answering: bool, bos: str, eos: str, tools: Sequence[Any] = ()
) -> str:
    """The text of a conversation, written with the variables that transformers gives to chat templates."""
    given = {"messages": turns, "tools": list(tools) or None, "documents": None, "add_generation_prompt": answering}
    from yangtuo.data.sandbox import render  # processes that prepare text never need it

    return render(_compile(jinja), **given, bos_token=bos, eos_token=eos)


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """A value of lists and mappings in which every text is changed; the keys of mappings stay."""
    if isinstance(value, Mapping):
        return {key: _each_text(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_each_text(inner, change) for inner in value]
    return change(value) if isinstance(value, str) else value


@lru_cache(maxsize=32)
def _compile(jinja: str) -> jinja2.Template:
    from yangtuo.data.sandbox import compile_template

    return compile_template(_GENERATION.sub("", jinja))


def _split(rendered: str, contents: Mapping[int, str], controls: Controls, *, hidden: bool = False) -> list[_Run]:
    """Runs of text, marks replaced by their `contents`, and the control tokens that the template itself writes.

    `hidden` marks stand within messages, and what they stand for is taken as it is.
    """
    runs: list[_Run] = []
    text = ""
    at = 0
    for mark in [*(HIDDEN if hidden else _MARK).finditer(rendered), None]:
        own = rendered[at : mark.start() if mark else len(rendered)]
        begin = 0
        for token in controls.pattern.finditer(own):
            text += own[begin : token.start()]
            runs += [_Run(None, text)] if text else []
            runs.append(_Run(controls.ids[token[0]], token[0]))
            text, begin = "", token.end()
        text += own[begin:]
        if mark and hidden:
            text += contents[int(mark[1][1:-1])]
            at = mark.end()
        elif mark:
            content = contents[int(mark[2])]
            content = content if mark[1] else content.lstrip()
            text += content if mark[3] else content.rstrip()
            at = mark.end()
    return [*runs, _Run(None, text)] if text else runs


def _rest(prompt: list[_Run], whole: list[_Run]) -> list[_Run] | None:
    """The runs of `whole` behind `prompt`, which may end within a run of text; None where `whole` starts otherwise."""
    if not prompt or whole[: len(prompt)] == prompt:
        return whole[len(prompt) :]
    last = len(prompt) - 1
    if prompt[last].control is not None or whole[:last] != prompt[:last] or last >= len(whole):
        return None
    if whole[last].control is not None or not whole[last].text.startswith(prompt[last].text):
        return None
    return [_Run(None, whole[last].text.removeprefix(prompt[last].text)), *whole[last + 1 :]]


def _encode(encoder: Encoder, runs: Sequence[_Run], continues: bool = False) -> list[list[int]]:
    """Ids of each run; every run has SentencePiece's space before it, but a first one that `continues` another."""
    return [
        [run.control]
        if run.control is not None
        else encoder.encode(compose(run.text), prefix=not (continues and number == 0))
        for number, run in enumerate(runs)
    ]


def _common(left: list[int], right: list[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def get_template(name: str | None, model_directory: Path | None) -> Template:
    """The template called `name`, one of `TEMPLATES`; `model` is the one that lies in `model_directory`.

    Without a name it is the model's own, or alpaca where it has none. Raises `ConfigError` for an unknown name and
    `FileError` where the model brings no template.
    """
    if name is not None and name in _KNOWN:
        return Template(name, _KNOWN[name])
    if name is not None and name != "model":
        near = get_close_matches(name, TEMPLATES, 1)
        raise ConfigError(
            f"there is no template {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
            expected="one of " + ", ".join(TEMPLATES),
        )
    jinja = own_template(model_directory) if model_directory else None
    if jinja is not None:
        return Template("model", jinja)
    if name is None:
        return Template(_DEFAULT, _KNOWN[_DEFAULT])
    raise FileError(
        f"the model {model_directory} brings no chat template",
        found="no chat_template.jinja, and no chat_template in tokenizer_config.json",
        expected="one of the named templates: " + ", ".join(_KNOWN),
        run="the same command with --template alpaca",
    )


def own_template(directory: Path) -> str | None:
    """The Jinja text that a model or adapter directory brings, wherever it stands there.

    ChatGLM-6B is published without one; its code had it, and its tokenizer tells that it is meant.
    """
    own = read_templates(directory).get("default")
    return _CHATGLM if own is None and is_ice_text(directory) else own


def require_template(template: Template, encoder: Encoder) -> None:
    """Raises `VocabularyError` where the tokenizer lacks a control token that the template writes."""
    missing = [token for token in _REQUIRED.get(template.name, ()) if encoder.control_id(token) is None]
    if "eos_token" in template.jinja and encoder.eos_id is None:
        missing.append("EOS")
    if missing:
        flags = " ".join(f"--add-token '{token}'" for token in missing)
        raise VocabularyError(
            f"the template {template.name} needs control tokens that this tokenizer lacks",
            found="no " + ", no ".join(missing),
            expected="a tokenizer that has them, or another template",
            run=f"yangtuo tokenizer merge {flags}, then expand; or --template alpaca",
        )
