"""The command line as users meet it: statuses, messages, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from yangtuo import cli
from yangtuo.config import STAGES, TOOLS
from yangtuo.config.options import StageConfig


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb.split()[0] in shown for verb in {**STAGES, **TOOLS, "run": 0, "recipes": 0, "quickstart": 0})


@pytest.mark.parametrize("verb", [*STAGES, *TOOLS, "run", "recipes", "quickstart"])
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke([*verb.split(), "--help"]) == 0
    assert f"Example: yangtuo {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convrt"], 'Did you mean "convert"'),
        (["tokenizer", "tain"], 'Did you mean "train"'),
        (["convert", "--output", "x"], "--source"),
        (["convert", "--source", "x", "--output", "y", "--dtyp=float32"], "Did you mean --dtype"),
        (["sft", "--model", "m", "--data", "d", "--per_device_train_batch_size", "4"], "Did you mean --micro-batch?"),
        (["sft", "--model", "m", "--data", "d", "--output", "o", "--lora_r=8"], "Did you mean --rank?"),
        (["sft", "--cutoff-len", "512", "--model", "m", "--data", "d", "--output", "o"], "Did you mean --max-length?"),
        (["pretrain", "--model", "m", "--data", "d", "--output_dir", "o"], "Did you mean --output?"),
        (["pretrain", "--model", "m", "--weight-decay", "0.1"], "Did you mean --trainer weight_decay=…?"),
        (["pretrain", "--model", "m", "--use_dora", "true"], "Did you mean --lora use_dora=true?"),
        (["sft", "--model", "m", "--finetuning_type", "full"], "Did you mean --rank 0?"),
        (["prepare", "--source", "x", "--tokenizer", "t", "--output", "y", "--seq_length=9"], "--block-size?"),
        (["convert", "--source", "x", "--output", "y", "--dtype", "float31"], "float31"),
        (["prepare", "--source", "x", "--tokenizer", "t", "--output", "y", "--block-size", "0"], "Must be > 0"),
    ],
)
def test_a_mistyped_command_gets_one_message_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.invoke(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "--help" in captured.err
    assert captured.out == ""


def test_a_missing_input_gets_status_2_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.invoke(["convert", "--source", str(tmp_path / "none" / "x"), "--output", str(tmp_path / "out")])
    assert status == 2
    assert "does not exist" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_gives_status_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(_verb: str) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "stage_function", interrupted)
    assert cli.invoke(["convert", "--source", str(tmp_path), "--output", str(tmp_path / "out")]) == 130


def test_json_prints_one_object_on_stdout_and_the_rest_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["run", "quickstart", "--dry-run", "--json", "--set", "pretrain.rank=3"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["steps"]["pretrain"]["rank"] == 3
    assert "merge-pretrain" in captured.err


def test_what_libraries_print_does_not_spoil_the_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def talkative(_options: object) -> dict[str, str]:
        print("a library's greeting")  # noqa: T201
        return {"answer": "42"}

    monkeypatch.setattr(cli, "stage_function", lambda _verb: talkative)
    assert cli.invoke(["convert", "--source", str(tmp_path), "--output", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"answer": "42"}


def test_a_summary_fits_a_screen_and_says_what_comes_next(
    pico_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.invoke(["convert", "--source", str(pico_model), "--output", str(tmp_path / "base")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) < 400
    assert lines[-1].split(maxsplit=1)[1].startswith(f"yangtuo tokenizer train --base {tmp_path / 'base'}")


@pytest.mark.parametrize("verb", [verb for verb, options in STAGES.items() if hasattr(options, "dry_run")])
def test_a_dry_run_needs_no_output_and_any_other_run_does(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    required = {
        "prepare": ["--source", "a/b/c", "--tokenizer", "t/t/t"],
        "pretrain": ["--model", "m/m/m", "--data", "d"],
    }
    required["expand"] = ["--model", "m/m/m", "--tokenizer", "t/t/t"]
    required["sft"] = required["pretrain"]
    required["tokenizer train"] = ["--base", "b/b/b", "--corpus", "c/c/c", "--size", "10"]
    assert cli.invoke([*verb.split(), *required[verb]]) == 2
    assert f"yangtuo {verb} needs --output" in capsys.readouterr().err
    assert cli.invoke([*verb.split(), *required[verb], "--dry-run"]) == 2
    assert "does not exist" in capsys.readouterr().err, "the input is what is missing"


def test_each_verb_that_writes_an_artifact_names_a_command_that_exists() -> None:
    verbs = {**STAGES, **TOOLS}
    for verb, options in {**STAGES, **TOOLS}.items():
        words = options.following.split()
        has_own = options.next_command is not StageConfig.next_command
        assert words or has_own or verb == "chat", f"{verb}: a talk alone has nothing behind it"
        assert not words or words[1] in verbs or " ".join(words[1:3]) in verbs, (verb, options.following)
