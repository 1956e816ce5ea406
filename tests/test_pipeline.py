"""Recipes: found wrong before any work, skipped when finished, never overwritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from yangtuo import cli, hub, pipeline
from yangtuo.artifacts.draft import draft
from yangtuo.artifacts.manifest import Artifact, Kind, open_artifact
from yangtuo.config.options import StageConfig
from yangtuo.errors import ConfigError, FileError, OutputError

RECIPE = """
output: {output}
steps:
  convert: {{source: {source}, dtype: float32}}
  prepare:
    source: ["zh={source}:0.5"]
    tokenizer: ${{convert}}
    block_size: 64
"""


class Stages:
    """Stands in for the verbs: writes one file, remembers what ran, dies where told."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.die_at: str | None = None

    def __call__(self, verb: str) -> Any:
        def run(config: StageConfig) -> Artifact:
            self.ran.append(verb)
            references = [reference for values in config.input_references().values() for reference in values]
            parents = {str(i): open_artifact(r) for i, r in enumerate(references) if Path(r).is_dir()}
            with draft(config, Kind.MODEL, parents) as made:
                (made.path / "file").write_text(verb)
                if verb == self.die_at:
                    raise KeyboardInterrupt
            return made.artifact

        return run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "source.txt").write_text("text")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(output=tmp_path / "out", source=tmp_path / "source.txt"))
    return path


def test_steps_run_in_order_and_are_skipped_when_finished(recipe: Path) -> None:
    stages = Stages()
    first = pipeline.execute(pipeline.load(recipe), stages)
    assert stages.ran == ["convert", "prepare"]
    again = pipeline.execute(pipeline.load(recipe), stages)
    assert stages.ran == ["convert", "prepare"]
    assert {n: a.fingerprint for n, a in first.items()} == {n: a.fingerprint for n, a in again.items()}


def test_after_an_interruption_only_the_rest_runs(recipe: Path) -> None:
    stages = Stages()
    stages.die_at = "prepare"
    with pytest.raises(KeyboardInterrupt):
        pipeline.execute(pipeline.load(recipe), stages)
    stages.die_at = None
    pipeline.execute(pipeline.load(recipe), stages)
    assert stages.ran == ["convert", "prepare", "prepare"]


@pytest.mark.parametrize("change", ["option", "input"])
def test_a_changed_step_is_named_and_nothing_is_overwritten(recipe: Path, tmp_path: Path, change: str) -> None:
    pipeline.execute(pipeline.load(recipe), Stages())
    if change == "input":
        (tmp_path / "source.txt").write_text("other text")
    overrides = ["convert.dtype=float16"] if change == "option" else []
    with pytest.raises(OutputError, match=r"step convert has changed") as caught:
        pipeline.execute(pipeline.load(recipe, overrides), Stages())
    assert f"rm -r {tmp_path / 'out' / 'convert'} {tmp_path / 'out' / 'prepare'}" in str(caught.value)


def test_options_are_overridden(recipe: Path, tmp_path: Path) -> None:
    plan = pipeline.load(recipe, ["prepare.block_size=128", f"output={tmp_path / 'elsewhere'}"])
    values = plan.to_dict()["steps"]["prepare"]
    assert values["block_size"] == 128
    assert values["output"] == str(tmp_path / "elsewhere" / "prepare")
    assert values["tokenizer"] == str(tmp_path / "elsewhere" / "convert")


def test_all_mistakes_of_a_recipe_are_told_at_once(recipe: Path) -> None:
    text = recipe.read_text().replace("block_size: 64", "block_sise: 64").replace("dtype: float32", "dtype: float31")
    recipe.write_text(text)
    with pytest.raises(ConfigError) as caught:
        pipeline.load(recipe)
    assert "did you mean 'block_size'" in str(caught.value)
    assert "float31" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("convert: {", "konvert: {", "did you mean 'convert'"),
        ("${convert}", "${konvert}", "did you mean 'convert'"),
        ("steps:", "stepps:", "not a recipe"),
        ("steps:", "steps: {}\nrest:", "not a recipe"),
        ("block_size: 64", "block_size: -1", "Must be > 0"),
        ("block_size: 64", "block_size: many", "many"),
        ("    tokenizer: ${convert}\n", "", "--tokenizer"),
        ("dtype: float32", "dtype:float32", "'dtype:float32'; a space after the colon is missing"),
        ("  prepare:\n", "  evaluate:\n    suite:mmlu\n  prepare:\n", "with a space after the colon, in line 6"),
    ],
)
def test_a_mistake_is_named(recipe: Path, old: str, new: str, message: str) -> None:
    recipe.write_text(recipe.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=message):
        pipeline.load(recipe)


def test_a_missing_input_is_named_before_any_work(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "source.txt").unlink()
    with pytest.raises(FileError, match=r"2 problems(.|\n)*step convert: source names(.|\n)*step prepare"):
        pipeline.load(recipe)


@pytest.mark.parametrize("reference", ["texts/zh", "models/base@main", "nowhere/models/zh"])
def test_an_input_that_looks_like_a_hub_id_and_is_none_is_named_before_any_work(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reference: str
) -> None:
    """A mistyped relative path must not cost the hours of the steps before it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    arguments = ["run", str(recipe), "--set", f"prepare.source=zh={reference}", "--set", "output=out"]
    for more in ([], ["--dry-run"]):
        assert cli.invoke([*arguments, *more]) == 2
        assert f"step prepare: source names {reference.partition('@')[0]}" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_what_an_earlier_step_writes_is_asked_of_nobody(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its path as by its name; and a finished step needs its input no more."""
    asked: list[str] = []
    monkeypatch.setattr(hub, "require_found", lambda reference, **_: asked.append(reference))
    recipe.write_text(recipe.read_text().replace("${convert}", "out/convert"))
    plan = pipeline.load(recipe, ["output=out", "convert.source=owner/name"])
    pipeline.require_inputs(plan)
    assert asked == ["owner/name", str(recipe.parent / "source.txt")]


@pytest.mark.parametrize("option", ["dry_run: true", "shard: 1/2", "output: elsewhere"])
def test_an_option_that_makes_no_sense_in_a_recipe_is_refused_as_such(recipe: Path, option: str) -> None:
    recipe.write_text(recipe.read_text().replace("block_size: 64", option))
    with pytest.raises(ConfigError, match=r"makes no sense in a recipe|a step's output is its name") as caught:
        pipeline.load(recipe)
    assert "unknown" not in str(caught.value)


@pytest.mark.parametrize("text", ["nonsense", "convert.dtype", "konvert.dtype=1"])
def test_an_override_that_names_nothing_is_refused(recipe: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        pipeline.load(recipe, [text])


@pytest.mark.parametrize("content", [b"\xff\xfe\x00bad", b"a: [", b""])
def test_an_unreadable_recipe_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises((FileError, ConfigError), match=r"broken\.yaml"):
        pipeline.load(path)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        pipeline.load(tmp_path / "none.yaml")
