"""A whole model that learns: what is written is a model, trained as a plain loop over transformers would have it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from yangtuo.artifacts.manifest import Kind, open_artifact
from yangtuo.config.pretrain import PretrainConfig
from yangtuo.config.sft import SftConfig
from yangtuo.data.blocks import BlockDataset
from yangtuo.errors import UserError
from yangtuo.stages import pretrain, sft
from yangtuo.training import rates
from yangtuo.training.metrics_log import read_metrics
from yangtuo.training.order import OrderedBlocks


@pytest.mark.parametrize("tied", [False, True])
def test_it_is_what_a_plain_loop_trains(
    values: dict, pico_model: Path, pico_tied_model: Path, tmp_path: Path, tied: bool
) -> None:
    """The same batches, rates and clipping, by transformers' own loss and PyTorch's own AdamW."""
    base = pico_tied_model if tied else pico_model
    changed = {"model": str(base), "rank": 0, "learning_rate": 2e-3, "max_steps": 3, "output": tmp_path / "model"}
    made = pretrain.run(PretrainConfig(**{**values, **changed}))
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=2e-3, weight_decay=0.0)
    dataset = BlockDataset(values["data"])
    ordered = OrderedBlocks(dataset, 12, 0)
    losses = []
    for step in range(3):
        rows = [ordered[index] for index in range(4 * step, 4 * step + 4)]
        batch = {key: torch.stack([row[key] for row in rows]) for key in ("input_ids", "labels", "position_ids")}
        loss = plain(**batch, use_cache=False).loss
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * rates.share_of_peak(step, 3)
        optimizer.step()
        optimizer.zero_grad()
    assert [row["loss"] for row in read_metrics(made.path) if "loss" in row] == pytest.approx(losses, rel=1e-4)
    trained = AutoModelForCausalLM.from_pretrained(made.path, dtype="auto")
    start = AutoModelForCausalLM.from_pretrained(base).state_dict()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], tensor, rtol=2e-3, atol=2e-4)
        assert not torch.equal(trained.state_dict()[name], start[name]), name


def test_the_artifact_is_a_model_like_any_other(values: dict, pico_model: Path, tmp_path: Path) -> None:
    """Whole, in the dtype of the base, with its config, tokenizer and lineage; and sft goes on from it."""
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(pico_model, dtype=torch.bfloat16).save_pretrained(half)
    for file in pico_model.iterdir():
        if not (half / file.name).exists():
            (half / file.name).write_bytes(file.read_bytes())
    changed = {"model": str(half), "rank": 0, "learning_rate": 1e-2, "keep": "best", "eval_every": 2}
    made = pretrain.run(PretrainConfig(**{**values, **changed, "output": tmp_path / "model"}))
    assert made.manifest is not None and made.manifest.kind is Kind.MODEL
    assert {tensor.dtype for tensor in load_file(made.path / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((made.path / "config.json").read_text()) == json.loads((half / "config.json").read_text())
    assert not (made.path / "best").exists() and not (made.path / "checkpoints").exists()
    assert made.manifest.details["architecture"] == "LlamaForCausalLM"
    assert set(made.manifest.parents) == {"model", "data"}
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"instruction": f"Say {n}.", "output": f"{n}"} for n in range(20)]))
    options = {"rank": 0, "dtype": "float32", "max_steps": 1, "template": "alpaca", "max_length": 128}
    tuned = sft.run(SftConfig(model=str(made.path), data=(str(rows),), output=tmp_path / "tuned", **options))
    opened = open_artifact(str(tuned.path), Kind.MODEL)
    assert opened.manifest is not None and opened.manifest.template
    assert (tuned.path / "chat_template.jinja").is_file() or "chat_template" in (
        tuned.path / "tokenizer_config.json"
    ).read_text("utf-8")


def test_a_killed_run_goes_on(values: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from yangtuo.training.metrics_log import MetricsLog

    options = {**values, "rank": 0, "learning_rate": 5e-3, "save_every": 2, "max_steps": 5}
    alone = pretrain.run(PretrainConfig(**options, output=tmp_path / "alone"))
    write = MetricsLog.write

    def interrupt(self: MetricsLog, step: int, row: dict) -> None:
        write(self, step, row)
        if step == 3 and "loss" in row:
            raise KeyboardInterrupt

    monkeypatch.setattr(MetricsLog, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pretrain.run(PretrainConfig(**options, output=tmp_path / "model"))
    monkeypatch.setattr(MetricsLog, "write", write)
    made = pretrain.run(PretrainConfig(**options, output=tmp_path / "model"))
    assert read_metrics(made.path) == read_metrics(alone.path)
    assert made.fingerprint == alone.fingerprint


@pytest.mark.parametrize(
    "options",
    [
        {"adapter": "a"},
        {"embeddings": "new"},
        {"embeddings": "frozen"},
        {"lora": ("use_dora=true",)},
        {"dtype": "nf4"},
        {"embedding_learning_rate": 1e-3},
    ],
)
def test_options_of_an_adapter_do_not_go_with_it(values: dict, tmp_path: Path, options: dict) -> None:
    with pytest.raises(UserError, match="--rank 0 trains the whole model"):
        pretrain.run(PretrainConfig(**{**values, "rank": 0, "output": tmp_path / "model", **options}))


def test_without_a_rate_it_learns_at_a_tenth(values: dict, tmp_path: Path) -> None:
    """LoRA's usual rate would undo a model; and what is chosen is in the plan."""
    options = {**values, "learning_rate": None, "output": tmp_path / "model", "dry_run": True}
    plans = {rank: pretrain.run(PretrainConfig(**{**options, "rank": rank})).figures["plan"] for rank in (0, 8)}
    assert (
        plans[0]["rates"] == "peak rates: 2e-05"
        and plans[8]["rates"] == "peak rates: 0.0002, embedding and head 0.0002"
    )
    assert plans[0]["chosen"].startswith("the whole model; arithmetic in float32")
