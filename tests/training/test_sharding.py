"""Every way of sharing a run among processes trains what one process does, in the dtypes that people use.

A matrix, because what works for one sharding, dtype or kind of adapter crashed for its neighbours. All runs of it go
through one group of two processes, one after another: what a run leaves behind would show in the next.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from yangtuo.config.pretrain import PretrainConfig
from yangtuo.stages import pretrain
from yangtuo.training.metrics_log import read_metrics

RUN = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from yangtuo.config.pretrain import PretrainConfig
from yangtuo.stages import pretrain
from yangtuo.training import processes
for values in json.loads(Path(sys.argv[1]).read_text()):
    pretrain.run(PretrainConfig(**{**values, "output": Path(values["output"])}))
    print(values["output"], flush=True)
from yangtuo import cli, launcher
cli.sys.argv = ["yangtuo", "--version"]
cli.main()
"""
SHARDINGS = ("none", "zero2", "zero3", "fsdp2")
QUICK = {  # what CI runs: each sharding in both dtypes, with every kind of adapter
    ("none", "bfloat16", "dora", "new"),
    ("none", "float32", "lora", "full"),
    ("zero2", "bfloat16", "lora", "full"),
    ("zero2", "float32", "dora", "frozen"),
    ("zero3", "bfloat16", "lora", "new"),
    ("zero3", "float32", "lora", "full"),
    ("fsdp2", "bfloat16", "dora", "full"),
    ("fsdp2", "float32", "lora", "new"),
    ("fsdp2", "bfloat16", "lora", "frozen"),
    ("zero2", "bfloat16", "lora", "whole"),
    ("fsdp2", "float32", "lora", "whole"),
}
Case = tuple[str, str, str, str]


def refused(case: Case) -> bool:
    sharding, dtype, variant, embeddings = case
    return variant == "dora" and (embeddings == "whole" or (sharding.startswith("zero") and dtype != "float32"))


MATRIX = [
    case
    for case in product(SHARDINGS, ("bfloat16", "float32"), ("lora", "dora"), ("new", "full", "frozen", "whole"))
    if not refused(case) and (not case[0].startswith("zero") or find_spec("deepspeed"))
]
CASES = [pytest.param(case, marks=[] if case in QUICK else pytest.mark.slow, id="-".join(case)) for case in MATRIX]


def options(case: Case, grown: dict[str, Any], output: Path) -> dict[str, Any]:
    sharding, dtype, variant, embeddings = case
    lora = ("use_dora=true",) if variant == "dora" else ()
    trained = {"rank": 0} if embeddings == "whole" else {"embeddings": embeddings}
    chosen = {"sharding": sharding, "dtype": dtype, "lora": lora, **trained}
    return {**grown, "epochs": 0.5, "save_every": 2, **chosen, "output": str(output)}


@pytest.fixture(scope="module")
def together(grown: dict[str, Any], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapters of all cases that were asked for, each made by two processes over gloo."""
    directory = tmp_path_factory.mktemp("together")
    parameters = [getattr(item, "callspec", None) for item in request.session.items]
    wanted = [spec.params["case"] for spec in parameters if spec is not None and "case" in spec.params]
    runs = [options(case, grown, directory / "-".join(case)) for case in dict.fromkeys(wanted)]
    (directory / "runs.json").write_text(json.dumps(runs), encoding="utf-8")
    (directory / "run.py").write_text(RUN, encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    with (directory / "log").open("w") as log:
        subprocess.run(
            [sys.executable, *launcher, str(directory / "run.py"), str(directory / "runs.json")],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            check=False,
            timeout=1200,
        )
    return directory


@pytest.mark.timeout(1300)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_does(case: Case, grown: dict[str, Any], together: Path, tmp_path: Path) -> None:
    made = together / "-".join(case)
    assert made.is_dir(), (together / "log").read_text()[-6000:]
    values = options(("none", *case[1:]), grown, tmp_path / "adapter")
    alone = pretrain.run(PretrainConfig(**{**values, "output": tmp_path / "adapter"})).path
    rounding = 1e-2 if case[1] == "bfloat16" else 5e-4
    expected, actual = read_metrics(alone), read_metrics(made)
    assert [row["step"] for row in actual] == [row["step"] for row in expected]
    for row, wanted in zip(actual, expected, strict=True):
        assert row.keys() == wanted.keys()
        if "loss" in row:
            assert row["loss"] == pytest.approx(wanted["loss"], rel=rounding)
            assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=5 * rounding)
        else:
            assert row["bits_per_byte"] == pytest.approx(wanted["bits_per_byte"], rel=rounding)
    file = "model.safetensors" if case[3] == "whole" else "adapter_model.safetensors"
    tensors, single = (load_file(path / file) for path in (made, alone))
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()} == {
        name: (torch.float32, tensor.shape) for name, tensor in single.items()
    }
    start = 0.02 if case[1] == "bfloat16" else 2e-3
    for name, tensor in single.items():
        assert (tensors[name] - tensor).abs().max() < start, name
