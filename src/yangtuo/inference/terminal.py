"""A talk in a terminal: an editor that knows wide characters, and plain lines where stdin is a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing

from yangtuo import console
from yangtuo.errors import UserError
from yangtuo.inference.talk import HELP, Talk

_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def talk_in_terminal(talk: Talk, faster: str | None = None) -> None:
    """Reads what is said until /exit or the end of input; mistakes are said and end nothing.

    `faster` is what would speed replies up; it is said once, with the speed, behind the first reply that tells it.
    """
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        console.note(HELP)
    for text in _edited() if is_terminal else _lines():
        if text.strip() == "/exit":
            return
        try:
            said: str | None = talk.command(text.strip()) if text.startswith("/") else text
            if said is not None:
                say(talk, said)
                faster = None if say_speed(talk, faster) else faster
        except UserError as error:
            if not is_terminal:
                raise
            console.stderr.print(f"error: {error}", markup=False, style="red")


def say(talk: Talk, text: str) -> None:
    """Prints the reply as it comes; Ctrl-C cuts it short."""
    before = talk.num_forgotten
    with closing(talk.say(text)) as parts:  # type: ignore[type-var]
        try:
            for part in parts:
                sys.stdout.write(part.translate(_CONTROLS))  # what a model writes must not steer the terminal
                sys.stdout.flush()
        except KeyboardInterrupt:
            console.note(" …")
    sys.stdout.write("\n")
    sys.stdout.flush()
    if talk.num_forgotten > before:
        console.note(
            f"the talk is longer than the model's memory: its first {talk.num_forgotten} messages are left out"
        )


def say_speed(talk: Talk, faster: str | None) -> bool:
    """Says how fast the last reply came and what would be `faster`; whether there was something to say."""
    speed = talk.conversation.tokens_per_second
    if faster is None or speed is None:
        return False
    console.note(f"({speed:,.1f} tokens a second on this CPU; faster: {faster})")
    return True


def _lines() -> Iterator[str]:
    """Lines of a pipe; bytes that are no UTF-8 are replaced."""
    for line in sys.stdin.buffer if hasattr(sys.stdin, "buffer") else (text.encode() for text in sys.stdin):
        text = line.decode("utf-8", errors="replace").strip()
        if text:
            yield text


def _edited() -> Iterator[str]:
    """Lines of a terminal: Enter sends, Alt-Enter begins a new line, what is pasted may have many."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession("> ", multiline=True, key_bindings=keys)
    while True:
        try:
            text = session.prompt()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        # A terminal may send what is no UTF-8; it comes as halves of characters.
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", errors="replace")
        if text.strip():
            yield text
