"""Every way in which other recipes train nothing without a word is provoked here, and must be caught by name."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from yangtuo.errors import TrainingError
from yangtuo.training import base, guards, loop
from yangtuo.training.adapter import AdapterShape, attach
from yangtuo.training.metrics_log import MetricsLog, read_metrics

SHAPE = AdapterShape(rank=4, alpha=8)


@dataclass
class Blocks:
    """Blocks of repeated tokens, easy to learn; `labels` None takes the ids."""

    num_blocks: int = 40
    ignored: bool = False

    def __len__(self) -> int:
        return self.num_blocks

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(24) * (index % 3 + 1)) % 50 + 300
        labels = torch.full_like(ids, -100) if self.ignored else ids.clone()
        labels[0] = -100
        return {"input_ids": ids, "labels": labels, "position_ids": torch.arange(24)}


@dataclass
class Source:
    """Held-out text of one language, unlike the blocks."""

    name: str = "en"
    num_bytes: int = 100
    documents: list[torch.Tensor] = field(default_factory=lambda: [torch.arange(1, 60), torch.arange(40, 50)])


def adapted(path: Path):
    torch.manual_seed(0)
    return attach(base.load_base(path, torch.float32), SHAPE)


def train(model, directory: Path, blocks: Blocks | None = None, sources=(), **changed) -> loop.Outcome:
    settings = loop.Settings(**({"learning_rate": 1e-2, "dtype": "float32", "save_every": 3} | changed))
    return loop.train(model, blocks or Blocks(), list(sources), settings, directory)


def test_labels_that_are_all_ignored(pico_model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="count no token at all"):
        train(adapted(pico_model), tmp_path, Blocks(ignored=True))


def test_a_loss_that_only_pretends_to_need_gradients(pico_model: Path, tmp_path: Path) -> None:
    """`loss.requires_grad_(True)` lets backward run and trains nothing."""
    model = adapted(pico_model)
    inner = model.get_base_model()
    forward = inner.forward

    def pretend(*args, **inputs):
        with torch.no_grad():
            output = forward(*args, **inputs)
        output.loss = output.loss.requires_grad_(True) * 1.0
        return output

    inner.forward = pretend
    with pytest.raises(TrainingError, match=r"(?s)have not moved after 1 steps.*lm_head|embed_tokens|lora_B"):
        train(model, tmp_path)


def test_frozen_embeddings_behind_reentrant_checkpointing(pico_model: Path, tmp_path: Path) -> None:
    """The layers get no gradient where the checkpoint's inputs need none; only the head would learn."""
    torch.manual_seed(0)
    model = attach(base.load_base(pico_model, torch.float32), AdapterShape(rank=4, alpha=8, embeddings="full"))
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name:
            parameter.requires_grad = False
    inner = model.get_base_model()
    inner.activation_checkpointing_enable({"use_reentrant": True})
    inner.disable_input_require_grads()  # what transformers now switches on by itself, and others forget
    with pytest.warns(UserWarning, match="None of the inputs"), pytest.raises(TrainingError, match="lora_B"):
        train(model, tmp_path)


@pytest.mark.parametrize("embeddings", ["full", "frozen"])
def test_our_gradient_checkpointing_trains_the_same(pico_model: Path, tmp_path: Path, embeddings: str) -> None:
    losses = []
    for again in (False, True):
        torch.manual_seed(0)
        shape = AdapterShape(rank=4, alpha=8, embeddings=embeddings)
        model = attach(base.load_base(pico_model, torch.float32), shape)
        directory = tmp_path / str(again)
        directory.mkdir()
        train(model, directory, gradient_checkpointing=again)
        losses.append([row["loss"] for row in read_metrics(directory) if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0]


def test_a_rate_that_explodes(pico_model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"diverges|not finite") as caught:
        train(adapted(pico_model), tmp_path, learning_rate=30.0, epochs=10)
    assert "smaller --learning-rate" in str(caught.value)


def test_the_first_loss_that_is_no_number_names_step_and_blocks() -> None:
    finite = guards.Finite(400, scaled=False)
    finite.check(1, 6.0, 1.0, "batch {}".format)
    with pytest.raises(TrainingError, match=r"(?s)loss is not finite at step 2.*in batch 2"):
        finite.check(2, float("nan"), 1.0, "batch {}".format)
    with pytest.raises(TrainingError, match="gradient is not finite at step 3"):
        finite.check(3, 6.0, float("inf"), "batch {}".format)
    scaled = guards.Finite(400, scaled=True)
    for step in range(1, 21):  # float16's scale settles
        scaled.check(step, 6.0, float("inf"), "batch {}".format)
    with pytest.raises(TrainingError, match="gradient is not finite at step 21"):
        scaled.check(21, 6.0, float("inf"), "batch {}".format)


def test_a_poisoned_block_is_named_by_its_text(pico_model: Path, tmp_path: Path) -> None:
    model = adapted(pico_model)
    inner = model.get_base_model()
    forward = inner.forward

    def poisoned(*args, **inputs):
        output = forward(*args, **inputs)
        output.loss = output.loss * torch.where((inputs["input_ids"] == 302).any() & False, 1.0, torch.nan)
        return output

    inner.forward = poisoned
    with pytest.raises(TrainingError, match=r"(?s)not finite at step 1.*in blocks \d+ \('\[30\d, 30"):
        train(model, tmp_path)


def measured(directory: Path) -> dict[int, float]:
    return {row["step"]: row["bits_per_byte"]["en"] for row in read_metrics(directory) if "bits_per_byte" in row}


def test_a_language_that_is_forgotten_ends_the_run_with_what_kept_the_bound(
    pico_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A night's training must not end in an error and no adapter because a guard did what it was set for."""
    free = tmp_path / "free"
    free.mkdir()
    train(adapted(pico_model), free, sources=[Source()], epochs=2)
    start, first, second = list(measured(free).values())[:3]
    assert start < first < second
    bound = (first + second) / 2 / start - 1
    outcome = train(adapted(pico_model), tmp_path, sources=[Source()], bound=(f"en={bound}",), epochs=2)
    assert (outcome.steps, outcome.kept_step) == (6, 3)
    assert outcome.bits_per_byte_after["en"] == pytest.approx(first)
    assert outcome.ended is not None and "the bound on en is broken" in outcome.ended
    assert outcome.details()["ended"] == outcome.ended
    assert "the adapter of step 3 is kept, the best that keeps the bound" in " ".join(capsys.readouterr().err.split())
    again = tmp_path / "again"
    again.mkdir()
    expected = train(adapted(pico_model), again, sources=[Source()], epochs=2, save_every=3, keep="best")
    assert expected.kept_step == 3
    assert (again / "adapter_model.safetensors").read_bytes() == (tmp_path / "adapter_model.safetensors").read_bytes()


def test_where_nothing_keeps_the_bound_the_untrained_adapter_is_left(pico_model: Path, tmp_path: Path) -> None:
    outcome = train(adapted(pico_model), tmp_path, sources=[Source()], bound=("en=0",), epochs=2)
    assert (outcome.steps, outcome.kept_step) == (3, 0)
    assert outcome.bits_per_byte_after == outcome.bits_per_byte_before
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert all(not tensor.any() for name, tensor in tensors.items() if "lora_B" in name)


@pytest.mark.parametrize("text", ["en", "en=", "=0.1", "en=a", "en=-0.1", "en=0.1.2", "en:0.1"])
def test_a_bound_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(TrainingError, match="cannot be read"):
        guards.parse_bounds((text,))


def test_bounds_are_read() -> None:
    assert guards.parse_bounds(("en=0.05", "zh=5%", "fr=.1", "de=2.")) == {"en": 0.05, "zh": 0.05, "fr": 0.1, "de": 2.0}
    with pytest.raises(TrainingError, match=r"(?s)bound on zh cannot be kept.*held-out text of en.*yangtuo prepare"):
        guards.require_measured({"zh": 0.1}, ["en"])


def test_patience_ends_a_run_that_gets_no_better(pico_model: Path, tmp_path: Path) -> None:
    outcome = train(adapted(pico_model), tmp_path, sources=[Source()], patience=2, keep="best", eval_every=1, epochs=3)
    figures = measured(tmp_path)
    assert outcome.kept_step == min(list(figures)[1:], key=figures.__getitem__) == outcome.steps - 2
    assert outcome.steps < 15, "held-out text that is unlike the data soon gets worse"
    assert outcome.ended is not None and f"no better than step {outcome.kept_step} in 2 measurements" in outcome.ended


def test_measuring_and_saving_have_rhythms_of_their_own(pico_model: Path, tmp_path: Path) -> None:
    train(adapted(pico_model), tmp_path, sources=[Source()], eval_every=2, save_every=4, max_steps=5, epochs=99)
    assert list(measured(tmp_path)) == [0, 2, 4, 5]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"checkpoint-4", "checkpoint-5"}


def test_the_best_adapter_is_kept_on_demand(pico_model: Path, tmp_path: Path) -> None:
    """Held-out text that is unlike the data gets worse with every step: the best is the first that was measured."""
    outcomes = {}
    for keep in ("last", "best"):
        (tmp_path / keep).mkdir()
        outcomes[keep] = train(adapted(pico_model), tmp_path / keep, sources=[Source()], keep=keep, epochs=3)
    assert outcomes["best"].kept_step == 3
    assert outcomes["last"].kept_step == outcomes["last"].steps == 15
    assert outcomes["best"].bits_per_byte_after["en"] < outcomes["last"].bits_per_byte_after["en"]
    assert "best" in loop.SCRATCH, "the draft removes what is no part of the adapter"


def test_sigterm_saves_and_the_next_run_goes_on(pico_model: Path, tmp_path: Path) -> None:
    """A scheduler that takes the machine away costs no step."""
    model = adapted(pico_model)
    steps = []

    def terminate(*_):
        steps.append(None)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    handle = model.get_base_model().model.register_forward_pre_hook(terminate)
    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(SystemExit) as ended:
        train(model, tmp_path, save_every=100)
    handle.remove()
    assert ended.value.code == 143
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-2"]
    outcome = train(adapted(pico_model), tmp_path, save_every=100)
    assert outcome.steps == 5
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_full_disk_keeps_the_last_good_checkpoint(pico_model: Path, tmp_path: Path, monkeypatch) -> None:
    saved = torch.save
    calls = []

    def full(*args, **options):
        calls.append(None)
        if len(calls) > 4:  # options, optimizer, schedule and random state of the first checkpoint
            raise RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file")
        return saved(*args, **options)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left") as caught:
        train(adapted(pico_model), tmp_path, epochs=3)
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-3"]


def test_the_metrics_log_forgets_what_came_after_a_checkpoint(tmp_path: Path) -> None:
    metrics = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        metrics.write(step, {"loss": step / 2, "bits_per_byte": {"en": 1.0}})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    resumed = MetricsLog(tmp_path, step=2)
    resumed.write(3, {"loss": 9.0})
    assert [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0.5, 1, 9]
