"""Chat on a real pseudo-terminal: Chinese and backspaces over it, pastes, invalid bytes, Ctrl-C in mid-answer."""

from __future__ import annotations

import json
import re
import subprocess
import sys
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


def test_what_people_do_to_terminals(model: Path, tmp_path: Path) -> None:
    """One talk, for starting is what takes long; the file that /save writes says what was understood."""
    file = tmp_path / "talk.json"
    command = ["-m", "yangtuo", "chat", "--model", str(model), "--engine", "transformers", "--max-new-tokens", "150"]
    child = pexpect.spawn(sys.executable, command, timeout=120, dimensions=(40, 200), encoding=None)
    child.expect(READY)
    for sent in (
        b"/set temperature 1.5\r",
        b"/set max_tokens 4\r",
        "你好吗\x7f\x7f们\x7f界 🦙\x7f\r".encode(),
        "\x1b[200~第一行\n第二行\n\nlast\x1b[201~\r".encode(),
        b"a \xff\xe4\xbd b\r",
        b"/nothing\r",
        b"first line\x1b\rsecond line\r",
        b"/set max_tokens 100\r",
    ):
        child.send(sent)
        child.expect(READY)
    child.send("长\r".encode())
    child.expect(rb"\x1b\[\?2004l.*\n.")
    child.sendintr()
    child.expect(READY)
    for sent in (b"/set max_tokens 4\r", "后\r".encode(), f"/save {file}\r".encode()):
        child.send(sent)
        child.expect(READY)
    child.send(b"/exit\r")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    turns = json.loads(file.read_text("utf-8"))["messages"]
    said = [turn["content"] for turn in turns if turn["role"] == "user"]
    assert said[:2] == ["你界 ", "第一行\n第二行\n\nlast"]
    assert said[2].startswith("a ") and said[2].endswith(" b")
    assert said[3] == "first line\nsecond line"
    assert said[-1] == "后", "a talk goes on after a reply that was cut short"


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
