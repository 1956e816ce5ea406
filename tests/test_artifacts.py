"""What stands under an output's name is complete, and is what its manifest says."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from yangtuo.artifacts.draft import draft
from yangtuo.artifacts.fingerprints import hash_file
from yangtuo.artifacts.manifest import MANIFEST, Artifact, Kind, open_artifact, step_fingerprint
from yangtuo.config.convert import ConvertConfig
from yangtuo.config.prepare import PrepareConfig
from yangtuo.errors import DataError, FileError, LineageError, OutputError


def make(config: ConvertConfig, text: str = "weights", resumable: bool = False) -> Artifact:
    with draft(config, Kind.MODEL, parents={}, resumable=resumable) as made:
        (made.path / "sub").mkdir(exist_ok=True)
        (made.path / "sub" / "file").write_text(text)
        made.describe(vocabulary_size=7, details={"answer": 42})
    return made.artifact


@pytest.fixture
def config(tmp_path: Path) -> ConvertConfig:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "weights").write_text("w")
    return ConvertConfig(source=str(tmp_path / "source"), output=tmp_path / "out")


def test_an_artifact_is_read_back_as_it_was_written(config: ConvertConfig) -> None:
    made = make(config)
    opened = open_artifact(config.output, Kind.MODEL)
    assert opened.manifest == made.manifest
    assert opened.manifest is not None
    assert opened.manifest.files == {"sub/file": hash_file(config.output / "sub" / "file")}
    assert opened.result()["answer"] == 42
    assert sorted(path.name for path in config.output.parent.iterdir()) == ["out", "source"]


def test_an_existing_output_is_refused_and_untouched(config: ConvertConfig) -> None:
    make(config)
    with pytest.raises(OutputError, match="never overwritten"):
        make(config, "other")
    assert (config.output / "sub" / "file").read_text() == "weights"


def test_a_failure_leaves_nothing(config: ConvertConfig) -> None:
    with pytest.raises(ZeroDivisionError), draft(config, Kind.MODEL, parents={}) as made:
        (made.path / "half").write_text("half")
        raise ZeroDivisionError
    assert [path.name for path in config.output.parent.iterdir()] == ["source"]


def test_resumable_work_is_kept_for_the_same_step_only(config: ConvertConfig, tmp_path: Path) -> None:
    def attempt() -> bool:
        with pytest.raises(KeyboardInterrupt), draft(config, Kind.MODEL, {}, resumable=True) as made:
            (made.path / "checkpoint").write_text("1")
            resumed = made.resumed
            raise KeyboardInterrupt
        return resumed

    assert [attempt(), attempt()] == [False, True]
    (tmp_path / "source" / "weights").write_text("changed")
    assert not attempt(), "a changed input must not go on from the old work"


def test_unusable_input_leaves_nothing_even_where_work_is_resumable(config: ConvertConfig) -> None:
    with pytest.raises(DataError), draft(config, Kind.MODEL, {}, resumable=True) as made:
        (made.path / "half").write_text("half")
        raise DataError("empty")
    assert [path.name for path in config.output.parent.iterdir()] == ["source"]


def test_an_output_below_a_file_is_named(tmp_path: Path, config: ConvertConfig) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        make(replace(config, output=tmp_path / "file" / "out"))


def test_a_process_killed_while_writing_leaves_no_output_and_no_lock(config: ConvertConfig) -> None:
    code = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from yangtuo.artifacts.manifest import Kind
        from yangtuo.artifacts.draft import draft
        from yangtuo.config.convert import ConvertConfig
        config = ConvertConfig(source={config.source!r}, output=Path({str(config.output)!r}))
        with draft(config, Kind.MODEL, parents={{}}) as made:
            (made.path / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert not config.output.exists()
    assert make(config).manifest is not None
    assert not (config.output / "half").exists()


def test_two_writers_of_one_output_are_kept_apart(config: ConvertConfig) -> None:
    with pytest.raises(OutputError, match="another process"), draft(config, Kind.MODEL, parents={}):
        make(config)


def test_a_full_disk_is_named(config: ConvertConfig) -> None:
    with pytest.raises(OutputError, match=r"No space left.*\n.*free"), draft(config, Kind.MODEL, parents={}):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not config.output.exists()


def test_the_wrong_kind_is_refused(config: ConvertConfig) -> None:
    make(config)
    with pytest.raises(LineageError, match="wrong kind"):
        open_artifact(config.output, Kind.ADAPTER)


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        open_artifact(tmp_path / "nothing" / "here", Kind.MODEL)


def test_a_damaged_manifest_is_named(config: ConvertConfig) -> None:
    make(config)
    (config.output / "yangtuo.json").write_text("{}")
    with pytest.raises(FileError, match=r"yangtuo\.json is not a manifest"):
        open_artifact(config.output)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("script", 1.5),
        ("script", [None]),
        ("sources", {"zh": {"documents": "many"}}),
        ("results", {"model": 3}),
        ("forgetting", {"m": {"en": {}}}),
        ("added", -1),
    ],
)
def test_details_of_another_type_are_named(config: ConvertConfig, key: str, value: object) -> None:
    make(config)
    manifest = config.output / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"details": {key: value}}))
    with pytest.raises(FileError, match="not a manifest") as caught:
        open_artifact(config.output)
    assert key in str(caught.value)


def test_the_step_follows_content_options_and_weights_but_not_places(tmp_path: Path) -> None:
    """A cache keyed by file names would train on old tokens; one keyed by places would never hit."""

    def step(text: str, **options: object) -> str:
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        directory.mkdir()
        (directory / "zh.txt").write_text(text)
        (directory / "tokenizer.model").write_text("t")
        weight = options.pop("weight", "")
        return step_fingerprint(
            PrepareConfig(
                source=(f"{directory / 'zh.txt'}{weight}",),
                tokenizer=str(directory / "tokenizer.model"),
                output=directory / "out",
                **options,  # type: ignore[arg-type]
            )
        )

    assert step("a") == step("a")
    assert len({step("a"), step("b"), step("a", block_size=9), step("a", weight=":0.5")}) == 4
