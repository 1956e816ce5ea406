"""`yangtuo sft` through its real entry point: answers are learned, prompts are not, and the template travels along."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from yangtuo import cli
from yangtuo.artifacts.manifest import Artifact, open_artifact
from yangtuo.config.prepare import PrepareConfig
from yangtuo.config.pretrain import PretrainConfig
from yangtuo.config.sft import SftConfig
from yangtuo.data.blocks import BlockDataset
from yangtuo.data.preview import DryRun
from yangtuo.data.template import get_template
from yangtuo.errors import ConfigError
from yangtuo.stages import prepare, pretrain, sft
from yangtuo.training.metrics_log import read_metrics
from yangtuo.vocab.encoding import load_encoder


@pytest.fixture(scope="session")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"instruction": f"Say {word}.", "input": "", "output": f"I say {word}."} for word in ("one", "two", "six")]
    path = tmp_path_factory.mktemp("conversations") / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tuned(pico_model: Path, conversations: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    config = SftConfig(
        model=str(pico_model),
        data=(str(conversations),),
        output=tmp_path_factory.mktemp("tuned") / "adapter",
        template="alpaca-2",
        max_length=192,
        rank=4,
        alpha=8,
        learning_rate=1e-2,
        epochs=20,
        batch_size=1,
        dtype="float32",
    )
    return sft.run(config)


def test_it_learns_answers_and_brings_its_template(tuned: Artifact, pico_model: Path) -> None:
    details = tuned.manifest.details
    assert details["last_loss"] < details["first_loss"] / 2
    assert details["data"]["kept"] == 3
    encoder = load_encoder(pico_model)
    template = get_template("alpaca-2", pico_model)
    assert tuned.manifest.template == template.fingerprint
    assert (tuned.path / "chat_template.jinja").read_text(encoding="utf-8") == template.render_jinja()
    generation = json.loads((tuned.path / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == template.stop_ids(encoder)
    assert not (tuned.path / "blocks").exists()
    assert not (tuned.path / "checkpoints").exists()


def test_one_name_for_two_files_is_refused(
    pico_model: Path, conversations: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Which of the two a figure speaks of could not be told; files of one stem in two directories have names enough."""
    named = [f"a={conversations}", f"a={conversations.parent}"]
    arguments = ["sft", "--model", str(pico_model), "--template", "alpaca", "--output", str(tmp_path / "out")]
    assert cli.invoke([*arguments, *(word for data in named for word in ("--data", data))]) == 2
    assert "several named a" in capfd.readouterr().err
    (tmp_path / "rows.json").write_bytes(conversations.read_bytes())
    twice = [str(conversations), str(tmp_path / "rows.json")]
    assert cli.invoke([*arguments, "--dry-run", *(word for data in twice for word in ("--data", data))]) == 0


def test_replacing_a_models_own_template_is_said(
    pico_model: Path, conversations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A chat model that is tuned in another form forgets the one in which every engine asks it."""
    model = tmp_path / "model"
    shutil.copytree(pico_model, model)
    (model / "chat_template.jinja").write_text(get_template("alpaca-2", None).render_jinja(), encoding="utf-8")
    options = {"model": str(model), "data": (str(conversations),), "max_length": 256, "dry_run": True}
    for template, replaced in (("alpaca", True), ("alpaca-2", False), (None, False)):
        sft.run(SftConfig(**options, template=template))
        assert ("replaces the model's own template" in capsys.readouterr().err) == replaced, template


@pytest.fixture
def prose(pico_model: Path, tmp_path: Path) -> PrepareConfig:
    file = tmp_path / "prose.txt"
    file.write_text("\n\n".join(f"The cat number {n} sat on the mat." for n in range(40)), encoding="utf-8")
    config = PrepareConfig(
        source=(f"en={file}",),
        documents="paragraph",
        tokenizer=str(pico_model),
        block_size=192,
        held_out=0.2,
        output=tmp_path / "data",
    )
    prepare.run(config)
    return config


def test_conversations_and_replay_have_a_loss_each(
    prose: PrepareConfig, pico_model: Path, conversations: Path, tmp_path: Path
) -> None:
    """One batch of everything: each loss is, at the first step, that of a run over its own blocks alone."""
    shared = {"model": str(pico_model), "rank": 4, "dtype": "float32", "epochs": 2}
    asked = {**shared, "data": (str(conversations),), "max_length": 192, "held_out": 0}

    def first(run: Artifact) -> dict:
        return next(row for row in read_metrics(run.path) if "loss" in row)

    num_asked = sft.run(SftConfig(**asked, batch_size=1, output=tmp_path / "count")).manifest.details["data"]["blocks"]
    num_read = len(BlockDataset(prose.output))
    alone = first(sft.run(SftConfig(**asked, batch_size=num_asked, output=tmp_path / "asked")))
    read = first(
        pretrain.run(PretrainConfig(**shared, data=str(prose.output), batch_size=num_read, output=tmp_path / "read"))
    )
    mixed = first(
        sft.run(
            SftConfig(
                **asked,
                replay=f"{prose.output}:{num_read / num_asked}",
                batch_size=num_asked + num_read,
                output=tmp_path / "mixed",
            )
        )
    )
    assert mixed["losses"] == pytest.approx({"conversations": alone["loss"], "replay": read["loss"]}, rel=1e-5)
    assert alone["loss"] != pytest.approx(read["loss"], rel=1e-3)
    assert "losses" not in alone


def test_replayed_text_is_read_along_and_measured(
    prose: PrepareConfig, pico_model: Path, conversations: Path, tmp_path: Path
) -> None:
    config = SftConfig(
        model=str(pico_model),
        data=(str(conversations),),
        replay=f"{prose.output}:1.0",
        max_length=192,
        rank=4,
        learning_rate=1e-2,
        epochs=10,
        batch_size=1,
        dtype="float32",
        output=tmp_path / "adapter",
    )
    details = sft.run(config).manifest.details
    assert details["steps"] == 2 * 10 * details["data"]["blocks"]
    assert details["bits_per_byte_after"]["en"] < details["bits_per_byte_before"]["en"] * 0.7
    with pytest.raises(ConfigError, match="blocks of one size") as error:
        sft.run(dataclasses.replace(config, max_length=128, output=tmp_path / "other"))
    assert "--max-length 192" in str(error.value)


@pytest.mark.parametrize("embeddings", ["full", "frozen"])
def test_a_dry_run_tells_what_the_run_does_and_writes_nothing(
    pico_model: Path, tmp_path: Path, embeddings: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows, blocks and parameters that are said beforehand must be those of the run itself."""
    rows = [{"instruction": f"Say {n}.", "output": "[red]</s>"} for n in range(30)] + [
        {"instruction": "q", "output": ""}
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    arguments = ["sft", "--model", str(pico_model), "--data", str(tmp_path / "rows.json"), "--max-length", "256"]
    arguments += ["--output", str(tmp_path / "out"), "--embeddings", embeddings, "--dtype", "float32", "--rank", "4"]
    assert cli.invoke([*arguments, "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.json"]
    assert told["data"]["dropped"] == {"empty answer": 1}
    [example] = told["data"]["examples"]["empty answer"]
    assert example.endswith('rows.json#31: {"instruction": "q", "output": ""}')
    pieces = [piece for stretch in told["samples"][0]["stretches"] for piece in stretch["pieces"]]
    assert len(pieces) == 256 and {piece["text"] for piece in pieces if piece["kind"] == "control"} == {
        "⟦<s>⟧",
        "⟦</s>⟧",
    }

    assert cli.invoke([*arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "▸[red]</s>⟦</s>⟧◂" in shown.replace("│", ""), "text is neither markup nor control token"
    assert "dropped  empty answer 1\n" in shown and "── document 1: " in shown

    assert cli.invoke(arguments) == 0
    said = capsys.readouterr().err
    assert f"{tmp_path / 'rows.json'}: 31 Alpaca\n30 of 31 rows are learned from\n" in said
    assert f"dropped: 1 empty answer, such as {example}\n" in said
    manifest = open_artifact(tmp_path / "out").manifest
    assert manifest is not None
    made = manifest.details
    assert made["data"] == told["data"]
    assert made["steps"] == told["plan"]["steps"] and made["tokens"] == told["plan"]["tokens"]
    trained = sum(tensor.numel() for tensor in load_file(tmp_path / "out" / "adapter_model.safetensors").values())
    assert trained == told["plan"]["trainable"]["lora"] + told["plan"]["trainable"]["embeddings"]


def test_a_dry_run_counts_an_earlier_adapter_and_replay(
    tuned: Artifact, pico_model: Path, conversations: Path, tmp_path: Path
) -> None:
    """The shape of an earlier adapter holds, whatever the options say, and replayed blocks are steps too."""
    (tmp_path / "prose.txt").write_text("The cat sat on the mat. " * 200, encoding="utf-8")
    source, data = (f"en={tmp_path / 'prose.txt'}",), tmp_path / "data"
    prepare.run(PrepareConfig(source=source, tokenizer=str(pico_model), block_size=192, held_out=0.0, output=data))
    config = SftConfig(
        model=str(pico_model),
        data=(str(conversations),),
        adapter=str(tuned.path),
        replay=f"{data}:2",
        max_length=192,
        rank=64,
        epochs=4,
        batch_size=1,
        dtype="float32",
        dry_run=True,
        output=tmp_path / "out",
    )
    told = sft.run(config)
    assert isinstance(told, DryRun)
    plan = told.figures["plan"]
    assert plan["replayed_blocks"] == 2 * plan["blocks"] and plan["steps"] == 4 * 3 * plan["blocks"]
    trained = sum(tensor.numel() for tensor in load_file(tuned.path / "adapter_model.safetensors").values())
    assert plan["trainable"]["lora"] + plan["trainable"]["embeddings"] == trained
    assert not config.output.exists()
