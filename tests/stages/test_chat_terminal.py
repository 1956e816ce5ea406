"""Chat on a real pseudo-terminal: Chinese and backspaces over it, pastes, invalid bytes, Ctrl-C in mid-answer."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from yangtuo import cli
from yangtuo.data.template import get_template

pexpect = pytest.importorskip("pexpect", reason="needs a pseudo-terminal")

READY = re.escape(b"\x1b[?2004h")
"""What the editor sends when it waits for a line: from here on the terminal marks what is pasted."""


@pytest.fixture(scope="module")
def model(pico_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pico model with a chat template."""
    directory = tmp_path_factory.mktemp("chat") / "model"
    directory.mkdir()
    for path in pico_model.iterdir():
        (directory / path.name).symlink_to(path)
    (directory / "chat_template.jinja").write_text(get_template("alpaca", None).render_jinja(), encoding="utf-8")
    return directory


@pytest.fixture
def terminal(model: Path) -> Iterator[pexpect.spawn]:
    command = ["-m", "yangtuo", "chat", "--model", str(model), "--engine", "transformers", "--max-new-tokens", "40"]
    child = pexpect.spawn(sys.executable, command, timeout=60, dimensions=(40, 200), encoding=None)
    child.expect(READY)
    yield child
    child.close(force=True)


def leave(child: pexpect.spawn, tmp_path: Path) -> list[str]:
    """Saves the talk, leaves, and returns what the user was understood to have said."""
    file = tmp_path / "talk.json"
    child.send(f"/save {file}\r".encode())
    child.expect(READY)
    child.send(b"/exit\r")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    messages = json.loads(file.read_text("utf-8"))["messages"]
    return [message["content"] for message in messages if message["role"] == "user"]


def say(child: pexpect.spawn, data: bytes) -> None:
    child.send(data)
    child.expect(READY)


def test_backspaces_over_chinese_take_whole_characters(terminal: pexpect.spawn, tmp_path: Path) -> None:
    say(terminal, "你好吗\x7f\x7f们\x7f界 🦙\x7f\r".encode())
    assert leave(terminal, tmp_path) == ["你界 "]


def test_a_paste_of_many_lines_is_one_turn(terminal: pexpect.spawn, tmp_path: Path) -> None:
    say(terminal, "\x1b[200~第一行\n第二行\n\nlast\x1b[201~\r".encode())
    assert leave(terminal, tmp_path) == ["第一行\n第二行\n\nlast"]


def test_invalid_bytes_end_nothing(terminal: pexpect.spawn, tmp_path: Path) -> None:
    say(terminal, b"a \xff\xe4\xbd b\r")
    say(terminal, b"again\r")
    first, second = leave(terminal, tmp_path)
    assert first.startswith("a ") and first.endswith(" b") and second == "again"


def test_ctrl_c_cuts_a_reply_and_the_talk_goes_on(model: Path, tmp_path: Path) -> None:
    command = ["-m", "yangtuo", "chat", "--model", str(model), "--engine", "transformers", "--max-new-tokens", "150"]
    child = pexpect.spawn(sys.executable, command, timeout=60, dimensions=(40, 200), encoding=None)
    child.expect(READY)
    child.send(b"/set temperature 1.5\r")
    child.expect(READY)
    child.send("一\r".encode())
    child.expect(rb"2004l.*\n.")
    child.sendintr()
    child.expect(READY)
    say(child, "二\r".encode())
    assert leave(child, tmp_path)[-1] == "二"


def test_a_pipe_with_bytes_that_are_no_text_is_answered(model: Path) -> None:
    command = [sys.executable, "-m", "yangtuo", "chat", "--model", str(model), "--engine", "transformers"]
    done = subprocess.run(
        [*command, "--max-new-tokens", "4"], input="你好\n".encode() + b"\xff\xfe\n/exit\nnever\n", capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.decode().splitlines()) >= 2


def test_a_base_model_continues_the_text(pico_model: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Asked in a form that it was never taught, a base babbles."""
    common = ["--engine", "transformers", "--once", "the cat", "--max-new-tokens", "8"]
    said = {}
    for name, options in {
        "base": ["--model", str(pico_model)],
        "without": ["--model", str(model), "--no-with-prompt"],
        "with": ["--model", str(pico_model), "--with-prompt"],
        "own": ["--model", str(model)],
    }.items():
        assert cli.invoke(["chat", *options, *common]) == 0
        said[name] = capfd.readouterr().out
    assert said["base"] == said["without"] != said["with"] == said["own"]
