"""Chat: one reply for scripts, a conversation for people, and no adapter on the wrong model."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from yangtuo import cli
from yangtuo.data.template import get_template


@pytest.fixture
def model(pico_model: Path, tmp_path: Path) -> Path:
    """The pico model with a chat template."""
    directory = tmp_path / "model"
    directory.mkdir()
    for path in pico_model.iterdir():
        (directory / path.name).symlink_to(path)
    (directory / "chat_template.jinja").write_text(get_template("alpaca", None).render_jinja(), encoding="utf-8")
    return directory


def test_once_prints_the_reply_and_nothing_else(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["chat", "--model", str(model), "--once", "你好 </s>", "--max-new-tokens", "5"]
    assert cli.invoke(arguments) == 0
    plain = capfd.readouterr()
    assert plain.err == ""
    assert cli.invoke([*arguments, "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"reply": plain.out.removesuffix("\n")}


def test_a_talk_ends_at_exit_and_forgets_at_reset(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n/reset\nHello\n/exit\nnever asked\n"))
    assert cli.invoke(["chat", "--model", str(model), "--max-new-tokens", "4"]) == 0
    first, second = capfd.readouterr().out.replace("> ", "").splitlines()
    assert first == second, "what was said before /reset must not be seen"


def test_a_talk_on_a_cpu_says_once_how_fast_it_is_and_what_would_be_faster(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\nHello again\n/exit\n"))
    assert cli.invoke(["chat", "--model", str(model), "--engine", "llama.cpp", "--max-new-tokens", "12"]) == 0
    said = capfd.readouterr().err
    assert said.count("tokens a second on this CPU; faster: ") == 1
    assert f"yangtuo export --model {model} --format gguf --quantize q8_0 --output NAME" in said


def test_a_model_without_a_directory_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["chat", "--model", str(tmp_path / "a" / "b"), "--once", "x"]) == 2
    assert "does not exist" in capfd.readouterr().err
