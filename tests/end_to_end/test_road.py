"""The whole road on the embedded base with a handful of texts: it holds together, and being killed costs nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
output: {output}
steps:
  convert: {{source: "${{package}}/quickstart/base", dtype: float32}}
  tokenizer-train: {{base: "${{convert}}", corpus: ["{texts}"], size: 300}}
  tokenizer-merge: {{base: "${{convert}}", pieces: "${{tokenizer-train}}"}}
  expand: {{model: "${{convert}}", tokenizer: "${{tokenizer-merge}}"}}
  prepare:
    source: ["zh={texts}"]
    tokenizer: ${{expand}}
    block_size: 64
    held_out: 0.3
  pretrain: {{model: "${{expand}}", data: "${{prepare}}", rank: 4, epochs: 1, batch_size: 4, save_every: 2}}
  merge-pretrain: {{stage: merge, base: "${{expand}}", adapter: ["${{pretrain}}"]}}
  sft:
    {{model: "${{merge-pretrain}}", data: ["{questions}"], max_length: 128, rank: 4, epochs: 1, batch_size: 4,
      save_every: 2}}
  merge: {{base: "${{merge-pretrain}}", adapter: ["${{sft}}"]}}
  evaluate:
    model: ["base=${{convert}}", "adapted=${{merge}}"]
    suite: bits-per-byte
    data: ["zh={texts}"]
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe over four Chinese documents and eight questions of the quickstart."""
    import yangtuo.quickstart

    directory = tmp_path_factory.mktemp("road")
    source = Path(yangtuo.quickstart.__path__[0]) / "texts"
    (directory / "zh").mkdir()
    for path in sorted((source / "zh").iterdir())[:4]:
        (directory / "zh" / path.name).write_text(path.read_text("utf-8"), encoding="utf-8")
    rows = json.loads((source / "questions" / "town.json").read_text("utf-8"))[:24]
    (directory / "questions.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    path = directory / "recipe.yaml"
    text = RECIPE.format(output=directory / "out", texts=directory / "zh", questions=directory / "questions.json")
    path.write_text(text, encoding="utf-8")
    return path


def start(recipe: Path, output: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "yangtuo", "run", str(recipe), "--set", f"output={output}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def finish(recipe: Path, output: Path) -> str:
    process = start(recipe, output)
    messages, _ = process.communicate()
    assert process.returncode == 0, messages
    return messages


def results(output: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((output / "evaluate" / "results.json").read_text("utf-8"))
    return values


def kill_when(process: subprocess.Popen[str], seen: Path, pattern: str) -> None:
    """Kills the process as soon as something below `seen` matches `pattern`."""
    for _ in range(6000):
        if any(seen.glob(pattern)):
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return
        assert process.poll() is None, "the road ended before it could be killed"
        time.sleep(0.02)
    raise AssertionError(f"{pattern} never appeared")


@pytest.fixture(scope="module")
def uninterrupted(recipe: Path) -> Path:
    output = recipe.parent / "out"
    said = [line for line in finish(recipe, output).splitlines() if ", about " not in line]  # one a minute
    assert len(said) <= 40, "a whole run fits a screen"
    assert "held-out text uses" in (output / "log.txt").read_text("utf-8"), "the rest is kept"
    return output


def test_the_road_learns_chinese(uninterrupted: Path) -> None:
    figures = results(uninterrupted)
    base, adapted = figures["base"]["zh"], figures["adapted"]["zh"]
    assert adapted["tokens_per_character"] < base["tokens_per_character"] / 2
    assert adapted["bits_per_byte"] < base["bits_per_byte"]


def test_nothing_but_artifacts_is_left(uninterrupted: Path) -> None:
    names = {path.name for path in uninterrupted.iterdir()}
    assert not [name for name in names if name.startswith(".")]
    page = {"report.html", "costs.json", "log.txt"}  # the run's own
    assert page <= names and all((uninterrupted / name / "yangtuo.json").is_file() for name in names - page)


def test_a_finished_road_is_skipped_step_by_step(recipe: Path, uninterrupted: Path) -> None:
    messages = finish(recipe, uninterrupted)
    assert messages.count("unchanged, skipped") == 10


def test_killed_in_training_twice_it_ends_with_the_same_numbers(recipe: Path, uninterrupted: Path) -> None:
    output = recipe.parent / "killed"
    kill_when(start(recipe, output), output, ".pretrain.partial/checkpoints/checkpoint-2/*")
    assert not (output / "pretrain").exists()
    kill_when(start(recipe, output), output, ".sft.partial/checkpoints/checkpoint-2/*")
    assert not (output / "sft").exists()
    finish(recipe, output)
    assert results(output) == results(uninterrupted)
    for step in ("pretrain", "sft"):
        files = [
            json.loads((run / step / "yangtuo.json").read_text("utf-8"))["files"] for run in (output, uninterrupted)
        ]
        assert files[0]["adapter_model.safetensors"] == files[1]["adapter_model.safetensors"], step
