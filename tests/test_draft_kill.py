"""A process killed at any system call of an artifact's end: the same command gives the same bytes, and no remains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from yangtuo.artifacts import draft as module
from yangtuo.artifacts.draft import draft, finish_earlier
from yangtuo.artifacts.manifest import Artifact, Kind, read_manifest
from yangtuo.config.convert import ConvertConfig
from yangtuo.errors import OutputError

# A process of its own forks one for each run, which counts what changes a disk from the moment the stage's block ends,
# and is killed before the call that was asked for.
RUNNER = """
import json, os, signal, sys
from pathlib import Path
from yangtuo.artifacts.draft import draft, finish_earlier
from yangtuo.artifacts.manifest import Kind
from yangtuo.config.convert import ConvertConfig
EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.listdir", "os.scandir", "fcntl.flock"}
os.fsync = lambda descriptor: None  # a kill is no power cut, and the disk is shared
source, place, resumable = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "True"

def make(output, strike):
    config = ConvertConfig(source=source, output=output)
    if finish_earlier(config) is not None:
        return 0
    with draft(config, Kind.MODEL, {}, resumable=resumable) as made:
        made.scratch.add("checkpoints")
        (made.path / "checkpoints" / "checkpoint-1").mkdir(parents=True, exist_ok=True)
        (made.path / "checkpoints" / "checkpoint-1" / "state").write_text("days of work")
        (made.path / "weights").write_text("weights")
        (made.path / "sub").mkdir(exist_ok=True)
        (made.path / "sub" / "more").write_text("more")
        made.describe(details={"answer": 42})
        count = 0
        def strike_at(event, arguments):
            nonlocal count
            count += event in EVENTS
            if count == strike and event in EVENTS:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(strike_at)
    return count

def run(output, strike):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, str(make(output, strike)).encode())
        os._exit(0)
    os.close(write)
    status = os.waitpid(child, 0)[1]
    told = os.fdopen(read).read()
    return status, int(told or 0)

def content(directory):
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != "yangtuo.json")
    return {str(path.relative_to(directory)): path.read_text() for path in files}

status, num_calls = run(place / "whole" / "out", 0)
assert status == 0
results = []
for strike in range(1, num_calls + 1):
    output = place / str(strike) / "out"
    work = output.parent / ".out.partial"
    status, _ = run(output, strike)
    kept = output.exists() or (work / "yangtuo.json").exists() or (work / "checkpoints/checkpoint-1/state").is_file()
    again = run(output, 0)[0] if not output.exists() else 0
    results.append({
        "killed": os.WIFSIGNALED(status), "kept": kept, "again": again, "content": content(output),
        "beside": sorted(path.name for path in output.parent.iterdir()),
        "fingerprint": json.loads((output / "yangtuo.json").read_text())["fingerprint"],
    })
print(json.dumps(results))
"""


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "weights").write_text("w")
    return tmp_path / "source"


@pytest.mark.parametrize("resumable", [False, True])
def test_killed_at_any_call_the_same_command_ends_with_the_same_bytes(
    source: Path, tmp_path: Path, resumable: bool
) -> None:
    command = [sys.executable, "-c", RUNNER, str(source), str(tmp_path / "runs"), str(resumable)]
    results = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert len(results) > 20
    assert {result["fingerprint"] for result in results} == {
        read_manifest(tmp_path / "runs" / "whole" / "out").fingerprint
    }
    for strike, result in enumerate(results, 1):
        assert result["killed"] and result["again"] == 0, strike
        assert result["kept"] or not resumable, f"killed at call {strike}, nothing could be resumed"
        assert result["content"] == {"weights": "weights", "sub/more": "more"}, strike
        assert result["beside"] == ["out"], strike


def make(config: ConvertConfig, resumable: bool = False, taken: bool = False) -> Artifact:
    with draft(config, Kind.MODEL, {}, resumable=resumable) as made:
        (made.path / "weights").write_text("weights")
        if taken:
            config.output.mkdir()
            (config.output / "other").write_text("other")
    return made.artifact


@pytest.mark.parametrize("resumable", [False, True])
def test_a_name_taken_meanwhile_leaves_the_finished_artifact_beside_it(
    source: Path, tmp_path: Path, resumable: bool
) -> None:
    config = ConvertConfig(source=str(source), output=tmp_path / "out")
    with pytest.raises(OutputError, match="is finished, but not under its name") as caught:
        make(config, resumable, taken=True)
    assert (tmp_path / "out" / "other").read_text() == "other"
    (tmp_path / "out").rename(tmp_path / "moved")
    command = str(caught.value).split("run:")[1].split(",")[0].split()
    subprocess.run(command, check=True)
    assert sorted(content(tmp_path / "out")) == ["weights", "yangtuo.json"]


def test_what_an_earlier_run_finished_is_put_in_place(source: Path, tmp_path: Path) -> None:
    config = ConvertConfig(source=str(source), output=tmp_path / "out")
    with pytest.raises(OutputError):
        make(config, taken=True)
    (tmp_path / "out").rename(tmp_path / "moved")
    assert finish_earlier(config).path == tmp_path / "out"
    assert finish_earlier(config) is None


@pytest.mark.parametrize("kind", ["directory", "file", "link"])
def test_what_is_not_ours_is_never_removed(source: Path, tmp_path: Path, kind: str) -> None:
    work = tmp_path / ".out.partial"
    (tmp_path / "elsewhere").mkdir()
    if kind == "directory":
        work.mkdir()
        (work / "thesis.txt").write_text("mine")
    elif kind == "file":
        work.write_text("mine")
    else:
        work.symlink_to(tmp_path / "elsewhere")
    before = os.lstat(work).st_mode
    with pytest.raises(OutputError, match="nothing of yangtuo's"):
        make(ConvertConfig(source=str(source), output=tmp_path / "out"))
    assert os.lstat(work).st_mode == before
    assert kind != "directory" or (work / "thesis.txt").read_text() == "mine"


def test_another_verbs_unfinished_work_is_never_removed(source: Path, tmp_path: Path) -> None:
    work = tmp_path / ".out.partial"
    (work / "checkpoints" / "checkpoint-500").mkdir(parents=True)
    (work / module.STEP_FILE).write_text("0" * 64)
    with pytest.raises(OutputError, match="unfinished work of another run"):
        make(ConvertConfig(source=str(source), output=tmp_path / "out"))
    assert (work / "checkpoints" / "checkpoint-500").is_dir()


def test_a_users_own_lock_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".out.lock").symlink_to(tmp_path / "victim")
    make(ConvertConfig(source=str(source), output=tmp_path / "out"))
    assert (tmp_path / "victim").read_text() == "precious"
