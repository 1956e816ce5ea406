"""`torchrun … -m yangtuo`: training in all processes, all else in one, and errors said once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import yangtuo
from yangtuo.artifacts.manifest import read_manifest
from yangtuo.config.export import ExportConfig
from yangtuo.config.prepare import PrepareConfig
from yangtuo.stages import export, prepare
from yangtuo.training.checkpoints import latest_complete

RECIPES = Path(__file__).parents[2] / "recipes"
TEXTS = Path(yangtuo.__file__).parent / "quickstart" / "texts"


def torchrun(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What a recipe's header says, in two processes over gloo."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [sys.executable, *launcher, "-m", "yangtuo", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "400"},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


def write_inputs(directory: Path, pico_model: Path) -> dict[str, str]:
    """What the 7B recipes ask for, in their own formats: Meta's layout, texts, and Alpaca's JSON."""
    export.run(ExportConfig(model=str(pico_model), format="meta", shards=2, output=directory / "llama"))
    (directory / "llama" / "yangtuo.json").unlink()
    rows = json.loads((TEXTS / "questions" / "town.json").read_text(encoding="utf-8"))[:24]
    (directory / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    for name in ("zh", "en"):
        (directory / name).mkdir()
        for path in sorted((TEXTS / name).iterdir())[:3]:
            (directory / name / path.name).write_text(path.read_text(encoding="utf-8")[:6000], encoding="utf-8")
    return {name: str(directory / name) for name in ("llama", "zh", "en", "rows.json")}


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs DeepSpeed, which is not installed")
@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("llama-7b-zh.yaml", ['prepare.source=["zh={zh}"]']),
        (
            "llama-7b-zh-yangtuo.yaml",
            ['prepare.source=["zh={zh}", "en={en}:0.2"]', "pretrain.bound=[en=9]", "expand.text=[{zh},{en}]"],
        ),
    ],
)
def test_a_7b_recipe_runs_as_its_header_says(name: str, own: list[str], pico_model: Path, tmp_path: Path) -> None:
    """Every step and key at a pico model's sizes, the sharding of the recipe too; float16 alone needs cards."""
    inputs = write_inputs(tmp_path, pico_model)
    steps = yaml.safe_load((RECIPES / name).read_text(encoding="utf-8"))["steps"]
    overrides = [
        f"output={tmp_path / 'out'}",
        f"convert.source={inputs['llama']}",
        f"tokenizer-train.corpus=[{inputs['zh']}]",
        "tokenizer-train.size=200",
        "prepare.block_size=32",
        "prepare.held_out=0.2",
        f"sft.data=[{inputs['rows.json']}]",
        "sft.max_length=160",
        *[
            f"{step}.{option}"
            for step in ("pretrain", "sft")
            for option in ("batch_size=4", "micro_batch=2", "epochs=0.1", "dtype=bfloat16")
        ],
        *[option.format(**inputs) for option in own],
    ]
    done = torchrun("run", RECIPES / name, *(f"--set={override}" for override in overrides), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {*steps}
    made = {step: read_manifest(tmp_path / "out" / step) for step in steps}
    assert made["merge"].vocabulary_size > made["convert"].vocabulary_size
    assert made["pretrain"].details["steps"] >= 1
    shown = re.findall(r"^\[\d+/\d+\] ([\w-]+): yangtuo", done.stderr, re.MULTILINE)
    assert shown == list(steps), "each step is announced once"


def test_refusals_come_before_the_first_step_and_are_said_once(pico_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The cat sat on the mat. " * 40, encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"output: {tmp_path / 'out'}\nsteps:\n  convert: {{source: {pico_model}}}\n"
        f"  prepare: {{source: {tmp_path / 'text.txt'}, tokenizer: '${{convert}}'}}\n"
        "  pretrain: {model: '${convert}', data: '${prepare}', batch_size: 3, dtype: nf4, sharding: fsdp2,"
        " bound: [en]}\n",
        encoding="utf-8",
    )
    done = torchrun("run", recipe, cwd=tmp_path)
    assert done.returncode != 0
    assert not (tmp_path / "out").exists()
    errors = re.findall(r"^error: .*", done.stderr, re.MULTILINE)
    assert len(errors) == 1 and "4 problems" in errors[0]
    for problem in (
        "multiple of 2",
        "nf4 does not go with --sharding fsdp2",
        "4 bits need",
        "bound 'en' cannot be read",
    ):
        assert problem in done.stderr


def test_an_error_in_another_process_than_the_main_one_is_shown(pico_model: Path, tmp_path: Path) -> None:
    """A node whose disk lacks the data must say so: its screen is otherwise silent."""
    (tmp_path / "text.txt").write_text("The cat sat on the mat. " * 40, encoding="utf-8")
    source, data = (str(tmp_path / "text.txt"),), tmp_path / "data"
    prepare.run(PrepareConfig(source=source, tokenizer=str(pico_model), block_size=32, held_out=0.0, output=data))
    script = tmp_path / "elsewhere.py"
    script.write_text(
        "import os, sys\n"
        "from yangtuo import cli\n"
        "if os.environ['RANK'] == '1':\n"
        "    sys.argv[sys.argv.index('--data') + 1] = 'nowhere/at/all'\n"
        "cli.main()\n",
        encoding="utf-8",
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(
        [
            sys.executable,
            *launcher,
            "pretrain",
            "--model",
            str(pico_model),
            "--data",
            str(tmp_path / "data"),
            "--output",
            "x",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode != 0
    assert len(re.findall(r"^error: ", done.stderr, re.MULTILINE)) == 1, done.stderr
    assert "nowhere/at/all" in done.stderr
    assert "yangtuo/cli.py" not in done.stderr, "no traceback of ours, of that process or of the one that waited for it"


def test_what_is_not_training_is_done_by_one_process(pico_model: Path, tmp_path: Path) -> None:
    done = torchrun("convert", "--source", pico_model, "--output", tmp_path / "made", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "model"


def test_ctrl_c_is_passed_on_and_all_processes_end_with_one_checkpoint(pico_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The cat sat on the mat. " * 40, encoding="utf-8")
    source, data = (str(tmp_path / "text.txt"),), tmp_path / "data"
    prepare.run(PrepareConfig(source=source, tokenizer=str(pico_model), block_size=32, held_out=0.0, output=data))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "yangtuo", "pretrain"]
    options = ["--max-steps=5000", "--batch-size=4", "--save-every=5000", "--rank=4", "--dtype=float32"]
    options += [f"--model={pico_model}", f"--data={data}", f"--output={tmp_path / 'adapter'}"]
    run = subprocess.Popen(
        [sys.executable, *launcher, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "400"},
        stderr=subprocess.PIPE,
        text=True,
    )
    work = tmp_path / ".adapter.partial"
    while not (work / "metrics.jsonl").is_file() or not (work / "metrics.jsonl").read_text("utf-8").count("\n") > 3:
        assert run.poll() is None, run.communicate()[1]
        time.sleep(0.2)
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=120)[1]
    step = re.search(r"told to end at step (\d+); a checkpoint is written", said)
    assert step is not None, said
    assert said.count("told to end") == 1, "the main process alone speaks"
    assert latest_complete(work / "checkpoints") == work / "checkpoints" / f"checkpoint-{step[1]}"
