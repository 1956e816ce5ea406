"""The doors to the libraries, and trackers: what is passed on arrives, what is ours or unknown is refused by name."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers.trainer_utils import SchedulerType

from yangtuo import cli
from yangtuo.config.pretrain import PretrainConfig
from yangtuo.errors import ConfigError, UserError
from yangtuo.stages import pretrain
from yangtuo.training import libraries, loop


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (("weight_decay=0.1", "optim=adafactor"), {"weight_decay": 0.1, "optim": "adafactor"}),
        (("max-grad-norm=2",), {"max_grad_norm": 2.0}),
        (("lr_scheduler_type=cosine",), {"lr_scheduler_type": SchedulerType.COSINE}),
        (("dataloader_num_workers=0", "optim_args=a=1,b=2"), {"dataloader_num_workers": 0, "optim_args": "a=1,b=2"}),
    ],
)
def test_arguments_of_the_trainer_get_the_types_that_it_declares(texts: tuple[str, ...], values: dict) -> None:
    assert libraries.read_trainer(texts) == values


def test_fields_of_lora_get_the_types_that_peft_declares() -> None:
    texts = ("lora_dropout=0.05", 'target_modules=["q_proj","v_proj"]', "use_dora=true", "layers_to_transform=[0]")
    assert libraries.read_lora(texts) == {
        "lora_dropout": 0.05,
        "target_modules": ["q_proj", "v_proj"],
        "use_dora": True,
        "layers_to_transform": [0],
    }
    assert libraries.read_lora(("target_modules=all-linear",)) == {"target_modules": "all-linear"}


@pytest.mark.parametrize(
    ("trainer", "lora", "message"),
    [
        ("weight_dekay=0.1", "", "did you mean 'weight_decay'"),
        ("weight_decay=much", "", "--trainer weight_decay cannot be 'much'"),
        ("weight_decay", "", "KEY=VALUE"),
        ("learning_rate=1", "", r"(?s)learning_rate is Yangtuo's own.*--learning-rate"),
        ("deepspeed=x.json", "", r"(?s)Yangtuo's own.*--sharding"),
        ("gradient_accumulation_steps=4", "", r"(?s)Yangtuo's own.*--batch-size and --micro-batch"),
        ("lr_scheduler_type=polynomial", "", r"(?s)polynomial.*linear or cosine"),
        ("lr_scheduler_type=cosin", "", "lr_scheduler_type"),
        ("label_smoothing_factor=0.1", "", "the loss is computed in slices"),
        ("", "r=8", r"(?s)Yangtuo's own.*--rank"),
        ("", "lora_drop=0.1", "did you mean 'lora_dropout'"),
        ("", "init_lora_weights=pissa", "changes the base model"),
        ("", "lora_bias=true", "what merge could not fold in"),
        ("", "lora_dropout=[1]", "cannot be"),
    ],
)
def test_what_cannot_be_passed_on_is_refused_before_anything_is_loaded(
    tmp_path: Path, trainer: str, lora: str, message: str
) -> None:
    config = PretrainConfig(
        model="no-model",
        data="no-data",
        output=tmp_path / "out",
        trainer=tuple(filter(None, [trainer])),
        lora=tuple(filter(None, [lora])),
    )
    with pytest.raises(UserError, match=message):
        pretrain.run(config)


def test_what_is_passed_on_arrives(values: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decay of weights changes what is learned, dropout and targets stand in the adapter's config."""
    seen = []
    finish = loop._finish

    def look(trainer, *arguments):
        seen.append(trainer)
        return finish(trainer, *arguments)

    monkeypatch.setattr(loop, "_finish", look)
    doors = {
        "trainer": ("weight_decay=0.25", "lr_scheduler_type=cosine", "adam_beta2=0.9"),
        "lora": ("lora_dropout=0.5", 'target_modules=["q_proj"]'),
    }
    made = pretrain.run(PretrainConfig(**{**values, **doors, "output": tmp_path / "adapter", "max_steps": 3}))
    config = json.loads((made.path / "adapter_config.json").read_text("utf-8"))
    assert (config["lora_dropout"], config["target_modules"]) == (0.5, ["q_proj"])
    (group, *_) = seen[0].optimizer.param_groups
    assert (group["weight_decay"], group["betas"]) == (0.25, (0.9, 0.9))
    assert seen[0]._settings.schedule == "cosine"


WANDB = """
import types
run, logged, started, config_values = None, [], [], {}
class _Config(dict):
    def update(self, values, allow_val_change=False):
        super().update(values)
config = _Config()
def init(**options):
    global run
    started.append(options)
    run = types.SimpleNamespace(_label=lambda **_: None, summary={}, id="1", name="one", url="")
def define_metric(*_, **__): pass
def log(values): logged.append(values)
"""
SWANLAB = """
logged, started, config = [], [], {}
_run = None
def get_run(): return _run
def init(**options):
    global _run
    started.append(options)
    _run = object()
def log(values, step=None): logged.append(values)
"""


@pytest.mark.parametrize(("name", "code"), [("wandb", WANDB), ("swanlab", SWANLAB)])
def test_trackers_are_told_losses_and_measurements(
    values: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str
) -> None:
    """By the library's own callback, with a stand-in for a service that wants an account and a network."""
    package = tmp_path / "site" / name
    (package / "sdk/lib").mkdir(parents=True)
    (package / "__init__.py").write_text(code)
    for part in ("sdk", "sdk/lib"):
        (package / part / "__init__.py").write_text("")
    (package / "sdk/lib/config_util.py").write_text("class ConfigError(Exception): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    options = {**values, "output": tmp_path / "adapter", "report_to": (name,), "max_steps": 2}
    pretrain.run(PretrainConfig(**options))
    told = importlib.import_module(name)
    for key in [key for key in sys.modules if key.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, key)
    assert len(told.started) == 1
    losses = [row["train/loss"] for row in told.logged if "train/loss" in row]
    assert len(losses) == 2 and all(loss > 0 for loss in losses)
    assert len([row for row in told.logged if "train/bits_per_byte/en" in row]) == 2


@pytest.mark.parametrize("name", ["wandb", "swanlab", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    from yangtuo.training import preflight

    monkeypatch.setattr(preflight, "find_spec", lambda _: None)
    arguments = ["pretrain", "--model", "m", "--data", "d", "--output", str(tmp_path / "out"), "--report-to", name]
    assert cli.invoke(arguments) == 2
    assert f"pip install {name}" in capsys.readouterr().err


def test_of_several_gpus_one_is_used_and_a_line_says_how_to_use_all(
    values: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Trainer takes all that it sees, by DataParallel, unless it is told otherwise."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("DataParallel")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.nn.DataParallel, "__init__", refuse)
    made = pretrain.run(PretrainConfig(**{**values, "output": tmp_path / "adapter", "max_steps": 1}))
    assert made.manifest is not None and made.manifest.details["steps"] == 1
    assert made.manifest.details["tokens"] == values["batch_size"] * 32, "a batch is not doubled by a second GPU"
    told = " ".join(capsys.readouterr().err.split())
    assert "2 GPUs are visible and one is used; all of them: torchrun --nproc_per_node 2 -m yangtuo" in told


def test_unknown_choices_are_refused_together(tmp_path: Path) -> None:
    config = PretrainConfig(
        model="m", data="d", output=tmp_path / "o", trainer=("nonsense=1",), lora=("r=1",), report_to=()
    )
    with pytest.raises(ConfigError, match=r"(?s)2 problems.*nonsense.*--rank"):
        pretrain.run(config)
