"""Who types nothing but the commands that are printed comes from a published model to a talk with one of their own."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from pathlib import Path

import pytest

import yangtuo
from yangtuo import cli

TEXTS = Path(yangtuo.__file__).parent / "quickstart" / "texts"
MOST_STEPS = 12


def test_the_printed_commands_lead_from_convert_to_chat(
    tmp_path: Path, pico_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only words in capitals are filled in, and no summary is longer than a screen."""
    monkeypatch.chdir(tmp_path)
    for name, source in (("zh", "zh"), ("en", "en")):
        (tmp_path / name).mkdir()
        for path in sorted((TEXTS / source).iterdir())[:3]:
            (tmp_path / name / path.name).write_text(path.read_text(encoding="utf-8")[:4000], encoding="utf-8")
    placeholders = {"TEXTS": "zh", "ENGLISH": "en", "SIZE": "60"}
    published = tmp_path / "published"
    shutil.copytree(pico_model, published)
    settings = json.loads((published / "config.json").read_text("utf-8"))
    settings["max_position_embeddings"] = 1024  # room for a question and a reply of the default length
    (published / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    command = f"yangtuo convert --source {published} --output models/base"
    verbs = []
    while len(verbs) < MOST_STEPS:
        for word, meant in placeholders.items():
            command = command.replace(word, meant)
        program, *arguments = shlex.split(command)
        assert program == "yangtuo"
        verbs.append(arguments[0] if arguments[0] != "tokenizer" else " ".join(arguments[:2]))
        if verbs[-1] == "chat":
            monkeypatch.setattr("sys.stdin", io.StringIO("你好\n/exit\n"))
        assert cli.invoke(arguments) == 0, (command, capsys.readouterr().err)
        shown = capsys.readouterr().out
        if verbs[-1] == "chat":
            assert shown.strip("\n")
            break
        lines = shown.splitlines()
        assert len(lines) <= 40, command
        label, _, command = lines[-1].strip().partition("  ")
        assert label == "next", lines
    expected = ["convert", "tokenizer train", "tokenizer merge", "expand", "prepare", "pretrain", "merge", "chat"]
    assert verbs == expected
    formats = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    made = [json.loads(file.read_text(encoding="utf-8")) for file in tmp_path.rglob("yangtuo.json")]
    told = {key for manifest in made for key in manifest["details"]}
    assert sorted(key for key in told if f"`{key}`" not in formats) == [], "every key of a manifest is on a page"
