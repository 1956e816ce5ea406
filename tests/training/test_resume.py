"""A run that is killed goes on with the very next batch and ends with the very bytes of one that was left alone."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from yangtuo import cli
from yangtuo.artifacts.manifest import STEP_FILE, Artifact, step_fingerprint
from yangtuo.config.prepare import PrepareConfig
from yangtuo.config.pretrain import PretrainConfig
from yangtuo.errors import OutputError
from yangtuo.stages import prepare, pretrain
from yangtuo.training import checkpoints

# Runs a config in a process of its own, which kills itself where told: at a step, or while a checkpoint is written.
KILLED = """
import json, os, signal, sys
from pathlib import Path
from yangtuo.config.pretrain import PretrainConfig
from yangtuo.stages import pretrain
from yangtuo.training import checkpoints, metrics_log

values, step, place = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
write, mark = metrics_log.MetricsLog.write, checkpoints.mark_complete

def kill_in_write(self, number, row):
    write(self, number, row)
    if place == "step" and number == step:
        os.kill(os.getpid(), signal.SIGKILL)

def kill_in_mark(checkpoint):
    if place == "checkpoint" and checkpoint.name.endswith(f"-{step}"):
        os.kill(os.getpid(), signal.SIGKILL)
    mark(checkpoint)

metrics_log.MetricsLog.write, checkpoints.mark_complete = kill_in_write, kill_in_mark
pretrain.run(PretrainConfig(**{**values, "output": Path(values["output"])}))
"""


# The command line in a process of its own, which is sent Ctrl-C in the middle of a step, once or twice.
INTERRUPTED = """
import signal, sys
from yangtuo import cli
from yangtuo.training import metrics_log

step, times = int(sys.argv.pop(1)), int(sys.argv.pop(1))
write = metrics_log.MetricsLog.write

def interrupt_in_write(self, number, row):
    write(self, number, row)
    for _ in range(times if number == step and "loss" in row else 0):
        signal.raise_signal(signal.SIGINT)

metrics_log.MetricsLog.write = interrupt_in_write
cli.main()
"""


@pytest.fixture(scope="module")
def values(pico_model: Path, pico_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    directory = tmp_path_factory.mktemp("resume")
    lines = [f"The cat number {number} sat on mat {number * 7 % 13} and looked at the rain." for number in range(120)]
    for number in range(12):
        (directory / f"{number}.txt").write_text("\n".join(lines[number * 10 : number * 10 + 10]), encoding="utf-8")
    data = prepare.run(
        PrepareConfig(
            source=(f"en={directory}",),
            tokenizer=str(pico_tokenizer),
            output=directory / "data",
            block_size=48,
            held_out=0.1,
        )
    )
    return {
        "model": str(pico_model),
        "data": str(data.path),
        "rank": 4,
        "alpha": 8,
        "learning_rate": 1e-2,
        "epochs": 1.5,
        "batch_size": 4,
        "save_every": 4,
        "seed": 3,
    }


def run(values: dict, output: Path) -> Artifact:
    return pretrain.run(PretrainConfig(**values, output=output))


def test_killed_twice_it_ends_with_the_same_bytes(values: dict, tmp_path: Path) -> None:
    whole = run(values, tmp_path / "whole")
    assert whole.manifest.details["steps"] > 14
    output = tmp_path / "killed"
    for step, place in ((6, "step"), (12, "checkpoint")):
        settings = json.dumps({**values, "output": str(output)})
        killed = subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, settings, str(step), place], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert not output.exists()
    resumed = run(values, output)
    for name in ("adapter_model.safetensors", "metrics.jsonl"):
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    assert resumed.fingerprint == whole.fingerprint


def test_ctrl_c_writes_a_checkpoint_and_a_second_one_ends_at_once(values: dict, tmp_path: Path) -> None:
    whole = run(values, tmp_path / "whole")
    output = tmp_path / "adapter"
    checkpoints_of_it = tmp_path / ".adapter.partial" / "checkpoints"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**values, "output": output}.items()]
    command = [sys.executable, "-W", "ignore", "-c", INTERRUPTED]
    once = subprocess.run([*command, "6", "1", "pretrain", *options], capture_output=True, text=True, check=False)
    assert once.returncode == 130, once.stderr
    assert "with a checkpoint; Ctrl-C again ends at once" in once.stderr and "the same command goes on" in once.stderr
    assert {path.name for path in checkpoints_of_it.iterdir()} == {"checkpoint-4", "checkpoint-7"}, (
        "the step that was begun"
    )
    twice = subprocess.run([*command, "11", "2", "pretrain", *options], capture_output=True, text=True, check=False)
    assert twice.returncode == 130 and "resuming after step 7" in twice.stderr, twice.stderr
    assert max(checkpoints.step_of(path) for path in checkpoints_of_it.iterdir()) == 8, (
        "the second one waits for nothing"
    )
    assert not output.exists()
    assert cli.invoke(["pretrain", *options]) == 0
    for name in ("adapter_model.safetensors", "metrics.jsonl"):
        assert (output / name).read_bytes() == (whole.path / name).read_bytes(), name


def test_waiting_checkpoints_of_another_config_are_not_thrown_away(values: dict, tmp_path: Path) -> None:
    """Hours of work must not vanish because an option was mistyped on the second start."""
    output = tmp_path / "adapter"
    work = tmp_path / ".adapter.partial"
    checkpoint = work / "checkpoints" / "checkpoint-8"
    checkpoint.mkdir(parents=True)
    (work / STEP_FILE).write_text("another", encoding="utf-8")
    with pytest.raises(OutputError, match="unfinished work of another run"):
        run(values, output)
    assert checkpoint.is_dir()
    (work / STEP_FILE).write_text(step_fingerprint(PretrainConfig(**values, output=output)), encoding="utf-8")
    assert run(values, output).manifest.details["steps"] > 14


def test_waiting_checkpoints_of_other_data_are_not_gone_on_with(values: dict, tmp_path: Path) -> None:
    """The same command over data that was prepared anew under the same name would train on with a mixed history."""
    output = tmp_path / "adapter"
    data = tmp_path / "data"
    shutil.copytree(values["data"], data)
    settings = {**values, "data": str(data)}
    killed = json.dumps({**settings, "output": str(output)})
    subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, killed, "6", "step"], check=False)
    assert (tmp_path / ".adapter.partial" / "checkpoints" / "checkpoint-4").is_dir()
    shutil.rmtree(data)
    source = tmp_path / "other.txt"
    source.write_text("\n".join(f"Another text, line {number}." for number in range(80)), encoding="utf-8")
    tokenizer = values["model"]
    prepare.run(PrepareConfig(source=(f"en={source}",), tokenizer=tokenizer, output=data, block_size=48, held_out=0.0))
    with pytest.raises(OutputError, match=r"(?s)its options or its data were others.*checkpoint-4"):
        run(settings, output)
    assert (tmp_path / ".adapter.partial" / "checkpoints" / "checkpoint-4").is_dir()


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"0123456789")
    assert checkpoints.latest_complete(tmp_path) is None, "none was marked, so none can be trusted"
    for step in (4, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"0123456789")
        checkpoints.mark_complete(tmp_path / f"checkpoint-{step}")
    assert checkpoints.latest_complete(tmp_path) == tmp_path / "checkpoint-8"
    (tmp_path / "checkpoint-8" / "optimizer.pt").write_bytes(b"01234")
    assert checkpoints.latest_complete(tmp_path) == tmp_path / "checkpoint-4"
    assert not (tmp_path / "checkpoint-8").exists()
