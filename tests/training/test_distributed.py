"""Two processes must train what one does: same losses, a whole adapter; otherwise a cluster bill buys another model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from yangtuo.training.metrics_log import read_metrics

RUN = """
import json, os, signal, sys, warnings
warnings.simplefilter("ignore")
from yangtuo.cli import main
from yangtuo.training import metrics_log
values = json.loads(sys.argv[1])
if "kill_at" in values:
    step, write = values.pop("kill_at"), metrics_log.MetricsLog.write
    def write_and_die(self, number, row):
        write(self, number, row)
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)
    metrics_log.MetricsLog.write = write_and_die
if values.get("sharding", "").startswith("zero"):
    import deepspeed
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled at first use for minutes; gloo will do
sys.argv = ["yangtuo", "pretrain", *(f"--{name.replace('_', '-')}={value}" for name, value in values.items())]
main()
"""

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs DeepSpeed, which is not installed")


def launch(values: dict, output: Path, num_processes: int) -> subprocess.CompletedProcess[str]:
    """Trains in `num_processes` processes over gloo."""
    script = output.parent / "run.py"
    script.write_text(RUN, encoding="utf-8")
    settings = json.dumps({**values, "output": str(output)})
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    return subprocess.run(
        [sys.executable, *launcher, str(script), settings],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def run(values: dict, output: Path, num_processes: int) -> dict[int, float]:
    """The loss of every step of a run that succeeds."""
    done = launch(values, output, num_processes)
    assert done.returncode == 0, done.stderr[:6000]
    return losses_of(output)


def require_same_adapter(whole: Path, output: Path) -> None:
    """Both hold the same tensors, whole and equal but for rounding."""
    expected, found = (load_file(path / "adapter_model.safetensors") for path in (whole, output))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert tensor.shape == found[name].shape
        torch.testing.assert_close(found[name], tensor, rtol=0.02, atol=2e-3)


def losses_of(output: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(output) if "loss" in row}


@pytest.fixture(scope="module")
def single(values: dict, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, float], Path]:
    output = tmp_path_factory.mktemp("single") / "adapter"
    return run(values, output, 1), output


@pytest.mark.parametrize(
    "sharding",
    ["none", "fsdp2", pytest.param("zero2", marks=needs_deepspeed), pytest.param("zero3", marks=needs_deepspeed)],
)
def test_two_processes_train_what_one_does(values: dict, single, sharding: str, tmp_path: Path) -> None:
    losses, whole = single
    output = tmp_path / "adapter"
    assert run({**values, "sharding": sharding}, output, 2) == pytest.approx(losses, rel=2e-4)
    require_same_adapter(whole, output)
    assert not (output / "checkpoints").exists()


@pytest.mark.parametrize("sharding", ["fsdp2", pytest.param("zero2", marks=needs_deepspeed)])
def test_a_sharded_run_that_was_killed_goes_on(values: dict, single, sharding: str, tmp_path: Path) -> None:
    """A node that dies takes the steps since the last checkpoint with it, and nothing else."""
    losses, whole = single
    output = tmp_path / "adapter"
    killed = launch({**values, "sharding": sharding, "kill_at": 6}, output, 2)
    assert killed.returncode != 0
    assert not output.exists()
    assert [path.name for path in tmp_path.glob(".adapter.partial/checkpoints/*")] == ["checkpoint-4"]
    resumed = launch({**values, "sharding": sharding}, output, 2)
    assert resumed.returncode == 0, resumed.stderr[:6000]
    assert "resuming after step 4" in resumed.stderr
    assert losses_of(output) == pytest.approx(losses, rel=2e-4)
    require_same_adapter(whole, output)


@pytest.fixture(scope="module")
def grown_single(grown: dict, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, float], Path]:
    output = tmp_path_factory.mktemp("grown-single") / "adapter"
    return run(grown, output, 1), output


@pytest.mark.parametrize(
    "sharding",
    ["none", "fsdp2", pytest.param("zero2", marks=needs_deepspeed), pytest.param("zero3", marks=needs_deepspeed)],
)
def test_new_rows_alone_learn_in_two_processes_as_in_one(
    grown: dict, grown_single, sharding: str, tmp_path: Path
) -> None:
    losses, whole = grown_single
    output = tmp_path / "adapter"
    assert run({**grown, "sharding": sharding}, output, 2) == pytest.approx(losses, rel=2e-4)
    require_same_adapter(whole, output)
    assert any("embed_tokens" in name for name in load_file(output / "adapter_model.safetensors"))
