"""Predicting: every row once and in order, whatever shape it has, and a stopped run goes on where it was."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from yangtuo import cli
from yangtuo.inference.predicting import read_questions

from .test_serve import serving

WORDS = ["the cat", "你好", "a </s> b", "🦙 llama", "مرحبا"]


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def arguments(model: Path, source: Path, output: Path) -> list[str]:
    options = ["--max-new-tokens", "6", "--template", "alpaca", "--engine", "transformers"]
    return ["predict", "--model", str(model), "--input", str(source), "--output", str(output), *options]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "the cat\n\n你好\n"),
        ("a.jsonl", '{"instruction": "the cat", "input": ""}\n{"instruction": "你好", "output": "secret"}\n'),
        ("a.csv", "instruct,query,answer\nthe cat,,secret\n你好,,\n"),
        ("a.jsonl", '{"input": "the cat", "target": "", "sample_id": "x"}\n{"input": "你好"}\n'),
        ("a.json", '[{"messages": [{"role": "user", "content": "the cat"}]}, {"prompt": "你好"}]'),
    ],
)
def test_questions_of_every_shape_are_asked_without_their_answers(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    questions = read_questions(tmp_path / name)
    assert [[message.content for message in question.messages] for question in questions] == [["the cat"], ["你好"]]


@pytest.mark.parametrize("row", ['{"instruction": ""}', '{"prompt": "  "}', '{"a": 1}'])
def test_a_row_that_asks_nothing_is_named_before_any_work(
    row: str, pico_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n' + row + "\n", encoding="utf-8")
    assert cli.invoke(arguments(pico_model, tmp_path / "in.jsonl", tmp_path / "out.jsonl")) == 2
    assert "in.jsonl:2" in capfd.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_order_and_ids_are_those_of_the_input(pico_model: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    lines = [{"id": f"r{n}", "prompt": WORDS[n % len(WORDS)] + " word" * (n % 7)} for n in range(40)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert cli.invoke(arguments(pico_model, source, tmp_path / "out.jsonl")) == 0
    got = rows(tmp_path / "out.jsonl")
    assert [{"id": row["id"], "prompt": row["prompt"]} for row in got] == lines
    assert cli.invoke([*arguments(pico_model, source, tmp_path / "one.jsonl"), "--concurrency", "1"]) == 0
    assert rows(tmp_path / "one.jsonl") == got, "what is asked beside a question changes nothing"
    settings = json.loads((tmp_path / "out.settings.json").read_text("utf-8"))
    assert settings["max_new_tokens"] == 6 and settings["template"] == "alpaca"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_killed_run_goes_on_and_other_settings_are_not_mixed_in(
    pico_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("".join(f"{WORDS[n % 5]} {n}\n" for n in range(300)), encoding="utf-8")
    command = [*arguments(pico_model, source, output), "--concurrency", "2"]
    partial = tmp_path / ".out.jsonl.partial"
    process = subprocess.Popen([sys.executable, "-m", "yangtuo", *command], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while time.monotonic() < end and not (partial.is_file() and partial.read_text("utf-8").count("\n") > 20):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = partial.read_text("utf-8").count("\n") - 1
    with partial.open("a", encoding="utf-8") as file:
        file.write('{"index": 7, "predi')  # as a kill in the middle of a line leaves it
    assert cli.invoke([*command, "--temperature", "0.5"]) == 2
    assert "another run" in capfd.readouterr().err
    assert cli.invoke([*command, "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["rows"] == 300 and 0 < result["asked"] <= 300 - kept
    assert cli.invoke(arguments(pico_model, source, tmp_path / "fresh.jsonl")) == 0
    assert rows(output) == rows(tmp_path / "fresh.jsonl")
    assert cli.invoke(command) == 2, "an output is never overwritten"


def test_a_server_answers_as_the_model_itself_and_a_submission_is_packed(pico_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    source = tmp_path / "in.jsonl"
    lines = [{"input": word, "target": "", "sample_id": f"s{n}", "task_type": "t"} for n, word in enumerate(WORDS)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert cli.invoke(arguments(pico_model, source, tmp_path / "local.jsonl")) == 0
    with serving("--model", str(pico_model), "--engine", "transformers", "--template", "alpaca") as (_, address):
        asked = ["predict", "--server", address, "--input", str(source), "--output", str(tmp_path / "remote.jsonl")]
        assert cli.invoke([*asked, "--max-new-tokens", "6", "--submission"]) == 0
    assert rows(tmp_path / "remote.jsonl") == rows(tmp_path / "local.jsonl")
    with zipfile.ZipFile(tmp_path / "remote.zip") as packed:
        sent = [json.loads(line) for line in packed.read("test_predictions.json").decode().splitlines()]
    assert [row["sample_id"] for row in sent] == [line["sample_id"] for line in lines]
    assert [row["target"] for row in sent] == [row["prediction"] for row in rows(tmp_path / "local.jsonl")]


def test_a_server_that_is_not_there_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    monkeypatch.setattr("yangtuo.inference.asking._RETRIES", 0)
    (tmp_path / "in.txt").write_text("hello\n", encoding="utf-8")
    command = ["predict", "--server", "http://127.0.0.1:9", "--model", "x", "--input", str(tmp_path / "in.txt")]
    assert cli.invoke([*command, "--output", str(tmp_path / "out.jsonl")]) == 2
    assert "does not answer" in capfd.readouterr().err
