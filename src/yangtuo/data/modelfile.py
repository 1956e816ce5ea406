"""An Ollama Modelfile for a GGUF file: its chat template in the language that Ollama reads, and where replies end.

Ollama knows no Jinja; its templates are Go's. What a Jinja writes around messages is found by rendering it with marks
in their place; most write a few texts, and whether one does is checked on talks of one to three questions. Formats:
docs/modelfile.mdx and docs/template.mdx of ollama/ollama.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from yangtuo.data.control_tokens import find_controls
from yangtuo.data.template import Role, Template, render_text
from yangtuo.errors import DataError
from yangtuo.vocab.encoding import Encoder

_MARK = re.compile("\uf8f0(\\d+)\uf8f1")
_TURNS: tuple[Role, ...] = ("user", "assistant", "user", "assistant", "user")


@dataclass(frozen=True)
class Frame:
    """What a template writes around messages."""

    bare: str
    """Before the first question, where nobody has set a system prompt."""
    system: tuple[str, str] | None
    """Around a system prompt; None where the template refuses one."""
    answer: str
    """Behind a question, where its answer is asked for."""
    begins: str
    """What an answer begins with, when it is part of the talk."""
    question: str
    """Between an answer and the next question."""

    def parts(self, roles: Sequence[Role]) -> list[str]:
        """The texts before, between and behind messages of these roles."""
        start = [self.bare] if roles[0] == "user" else list(self.system or ())
        turns = roles[len(start) - 1 : -1]
        between = [self.answer + self.begins if role == "user" else self.question for role in turns]
        return [*start, *between, self.answer]

    def go(self, bos: str) -> str:
        """The template for Ollama, without the `bos` that it puts before every prompt by itself."""
        bare = _go(self.bare.removeprefix(bos))
        if self.system is not None:
            before, behind = self.system
            system = _go(before.removeprefix(bos)) + "{{ .System }}" + _go(behind)
            bare = "{{ if .System }}" + system + "{{ else }}" + bare + "{{ end }}"
        user = '{{ if eq .Role "user" }}{{ .Content }}' + _go(self.answer)
        assistant = '{{ else if eq .Role "assistant" }}' + _go(self.begins) + "{{ .Content }}" + _go(self.question)
        return bare + "{{ range .Messages }}" + user + assistant + "{{ end }}{{ end }}"


def write_modelfile(
    file: str, template: Template | None, encoder: Encoder, *, adds_bos: bool
) -> tuple[str, str | None]:
    """The Modelfile beside the GGUF `file`, and how prompts would differ from ours; `adds_bos` as the GGUF says.

    A model without a template has its prompts continued as they are.
    """
    lines = ["# ollama create NAME -f Modelfile", f"FROM ./{file}"]
    bos = find_controls(encoder).bos if adds_bos else ""
    frame = find_frame(template, encoder) if template else None
    problem = None
    if template is not None and frame is None:
        problem = "the chat template cannot be said in Ollama's language, which continues prompts as they are"
    elif frame is not None and not all(text.startswith(bos) for text in (frame.bare, *(frame.system or ())[:1])):
        problem = f"Ollama puts {bos} before every prompt, which the chat template does not"
    lines += [f"# {problem}"] if problem else []
    if frame is not None:
        lines.append("# Control tokens that a message spells out are control tokens to Ollama.")
    lines.append(f'TEMPLATE """{frame.go(bos) if frame else "{{ .Prompt }}"}"""')
    stops = template.stop_ids(encoder) if template else []
    return "\n".join([*lines, *(f'PARAMETER stop "{encoder.pieces[stop]}"' for stop in stops)]) + "\n", problem


def find_frame(template: Template, encoder: Encoder) -> Frame | None:
    """What the template writes around messages, or None where that depends on more than their roles."""
    try:
        bare, answer = _parts(template, encoder, ("user",))
        _, between, question, _ = _parts(template, encoder, _TURNS[:3])
    except (DataError, ValueError):
        return None
    try:
        before, behind, _ = _parts(template, encoder, ("system", "user"))
        system = (before, behind)
    except (DataError, ValueError):
        system = None
    frame = Frame(bare, system, answer, between.removeprefix(answer), question)
    talks = [_TURNS[:count] for count in (1, 3, 5)]
    talks += [("system", *turns) for turns in talks if system]
    whole = all(_parts(template, encoder, roles) == frame.parts(roles) for roles in talks)
    return frame if whole else None


def _parts(template: Template, encoder: Encoder, roles: Sequence[Role]) -> list[str]:
    """The texts around messages of these roles; one text where the template does not write each of them once."""
    controls = find_controls(encoder)
    turns = [{"role": role, "content": f"\uf8f0{at}\uf8f1"} for at, role in enumerate(roles)]
    rendered = render_text(template.jinja, turns, True, controls.bos, controls.eos)
    pieces = _MARK.split(rendered)
    return pieces[::2] if pieces[1::2] == [str(at) for at in range(len(roles))] else [rendered]


def _go(text: str) -> str:
    """Text for a Go template in a Modelfile, which drops what is not printed and ends at three quotes."""
    quoted = re.compile(r'\{\{|"{2,}|[^\n\t]')

    def safe(match: re.Match[str]) -> str:
        text = match[0]
        if len(text) == 1 and text.isprintable():
            return text
        return '{{ "' + "".join(f"\\U{ord(character):08x}" for character in text) + '" }}'

    return quoted.sub(safe, text)
