"""ChatGLM-6B through the verbs, as somebody with a published directory and rows of entities would walk them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from yangtuo import cli
from yangtuo.data.template import Message, get_template
from yangtuo.inference.transformers_engine import load_model
from yangtuo.training import adapter, base, guards, loop
from yangtuo.training.metrics_log import read_metrics
from yangtuo.vocab.encoding import load_encoder

INSTRUCT = "提取人名、地名、机构名，返回实体_实体类型，没有就回答没有。"
PEOPLE, PLACES = ("李明", "王芳", "张三", "陈红"), ("北京", "上海", "广州", "南京")


def entity_rows() -> list[dict[str, str]]:
    """Rows of instruct, query and answer, as the document that this road follows has them."""
    rows = [
        {"query": f"文本：{person}昨天到{place}开会。", "answer": f"{person}_人名\n{place}_地名"}
        for person in PEOPLE
        for place in PLACES
    ]
    rows += [{"query": f"文本：天气很好，第{number}天。", "answer": "没有"} for number in range(4)]
    return [{"instruct": INSTRUCT, **row} for row in rows]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "ner.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in entity_rows()) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def glm(
    train_ice_model: Callable[..., bytes], write_pico_glm: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A published directory whose vocabulary has the characters of `rows`."""
    lines = [text for row in entity_rows() for text in row.values()]
    return write_pico_glm(tmp_path_factory.mktemp("published") / "chatglm", train_ice_model(lines, 600), hidden=64)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """The JSON result of a command that succeeds."""
    capsys.readouterr()
    assert cli.invoke([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message of a command that ends with exit status 2."""
    capsys.readouterr()
    assert cli.invoke(list(map(str, arguments))) == 2
    return capsys.readouterr().err


TRAIN = ("--max-length", 96, "--rank", 64, "--alpha", 64, "--learning-rate", 5e-3, "--batch-size", 4, "--epochs", 60)
TRAIN += ("--dtype", "float32", "--gradient-checkpointing", "--embeddings", "frozen")  # type: ignore[assignment]


@pytest.fixture(scope="module")
def tuned(glm: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tuned") / "adapter"
    arguments = ["sft", "--model", glm, "--data", rows, "--template", "model", *TRAIN, "--output", output]
    assert cli.invoke(list(map(str, arguments))) == 0
    return output


def test_a_published_directory_is_described(glm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The document's first step: which layers are there to put LoRA on."""
    facts = run(capsys, "inspect", glm)
    assert set(facts["lora_layers"]) == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
    assert (facts["kind"], facts["layers"], facts["tied"]) == ("model", 2, True)
    assert facts["rows"] == facts["pieces"] + 8


@pytest.mark.parametrize("template", ["model", "chatglm", "chatglm-rounds"])
def test_rows_are_shown_as_tokens_before_anything_is_trained(
    glm: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], template: str
) -> None:
    """The document's second step: the prompt, [gMASK], <sop>, the answer, <eop>."""
    options = ("--template", template, "--max-length", 96, "--output", tmp_path / "out", "--dry-run")
    told = run(capsys, "sft", "--model", glm, "--data", rows, *options)
    assert told["data"]["shapes"] == {str(rows): {"instruct": 20}}
    pieces = [piece for stretch in told["samples"][0]["stretches"] for piece in stretch["pieces"]]
    shown = "".join(piece["text"] for piece in pieces)
    assert "⟦[gMASK]⟧⟦<sop>⟧" in shown and "⟦<eop>⟧" in shown
    assert ("[Round▁0]" in shown) == (template == "chatglm-rounds")
    assert not (tmp_path / "out").exists()


def test_the_loss_falls_below_a_tenth_with_checkpointing(tuned: Path) -> None:
    """What the document could not reach: there the loss stayed where it began."""
    losses = [row["loss"] for row in read_metrics(tuned) if "loss" in row]
    assert sum(losses[-5:]) / 5 < losses[0] / 10


def test_every_lora_tensor_moves_after_one_step(glm: Path, rows: Path, tmp_path: Path) -> None:
    options = ("--template", "model", "--max-length", 96, "--rank", 4, "--batch-size", 64, "--epochs", 0.01)
    arguments = ["sft", "--model", glm, "--data", rows, *options, "--dtype", "float32", "--gradient-checkpointing"]
    assert cli.invoke([*map(str, arguments), "--output", str(tmp_path / "one")]) == 0
    trained = load_file(tmp_path / "one" / "adapter_model.safetensors")
    assert len(trained) == 2 * 4 * 2
    assert all(tensor.any() for name, tensor in trained.items() if "lora_B" in name)


def test_a_loss_that_was_only_declared_to_need_gradients(glm: Path, tmp_path: Path) -> None:
    """What the document did: reentrant checkpointing over a frozen embedding, and loss.requires_grad_(True)."""
    shape = adapter.AdapterShape(rank=2, alpha=4, embeddings="frozen")
    model = adapter.attach(base.load_base(glm, torch.float32), shape)
    inner: Any = model.get_base_model()
    inner.activation_checkpointing_enable({"use_reentrant": True})
    inner.disable_input_require_grads()
    forward = inner.forward

    def hacked(*arguments: Any, **inputs: Any) -> Any:
        output = forward(*arguments, **inputs)
        output.loss = output.loss.detach().requires_grad_(True)
        return output

    inner.forward = hacked
    encoder = load_encoder(glm)
    turns = [Message("user", "你好"), Message("assistant", "没有")]
    ids, learned = get_template("chatglm", None).encode_conversation(encoder, turns)
    block = {
        "input_ids": torch.tensor(ids),
        "labels": torch.tensor([token if flag else -100 for token, flag in zip(ids, learned, strict=True)]),
        "position_ids": torch.arange(len(ids)),
    }
    settings = loop.Settings(learning_rate=1e-3, dtype="float32", batch_size=1)
    with (
        pytest.warns(UserWarning, match="None of the inputs"),
        pytest.raises(guards.TrainingError, match=r"(?s)no trainable tensor has a part.*requires_grad_\(True\)"),
    ):
        loop.train(model, [block, block], [], settings, tmp_path)


def test_it_is_merged_asked_and_scored(
    glm: Path, tuned: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Adapter or merged model give one answer; the prompt is the one that was trained, and F1 says what was learned."""
    options = ("--dtype", "float32", "--prove", "你好", "--output", tmp_path / "merged")
    facts = run(capsys, "merge", "--base", glm, "--adapter", tuned, *options)
    assert facts["proof"]["compared"] == "logits" and facts["tied"]
    question = f"{INSTRUCT}\n文本：李明昨天到北京开会。"
    replies = []
    for subject in (["--model", tmp_path / "merged"], ["--model", glm, "--adapter", tuned]):
        capsys.readouterr()
        assert cli.invoke([*map(str, ["chat", *subject, "--once", question, "--max-new-tokens", 16])]) == 0
        replies.append(capsys.readouterr().out)
    assert replies[0] == replies[1] and "_人名" in replies[0]
    scored = run(capsys, "evaluate", "--model", tmp_path / "merged", "--suite", "ner", "--data", rows)
    untrained = run(capsys, "evaluate", "--model", glm, "--suite", "ner", "--data", rows, "--max-new-tokens", 8)
    assert scored["f1"] > 0.2 > untrained["f1"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert model.lm_head.weight is model.transformer.word_embeddings.weight


def test_the_adapter_is_what_peft_reads(glm: Path, tuned: Path) -> None:
    """The names of the original, so that an adapter goes back to where people have the original code."""
    names = load_file(tuned / "adapter_model.safetensors")
    assert "base_model.model.transformer.layers.0.attention.query_key_value.lora_A.weight" in names
    with adapter.quiet_peft():
        theirs = PeftModel.from_pretrained(load_model(glm), str(tuned))
    encoder = load_encoder(glm)
    ids = torch.tensor([get_template("chatglm", None).encode_prompt(encoder, [Message("user", "你好")])])
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, load_model(glm, tuned)(ids).logits, atol=1e-5)


def test_what_has_no_meaning_for_it_is_refused(
    glm: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "prepare", "--source", rows, "--tokenizer", glm, "--block-size", 96, "--output", tmp_path / "data")
    output = ("--output", tmp_path / "out")
    for arguments in (
        ("pretrain", "--model", glm, "--data", tmp_path / "data", *output),
        ("expand", "--model", glm, "--tokenizer", glm, *output),
        ("sft", "--model", glm, "--data", rows, "--max-length", 96, "--replay", tmp_path / "data", *output),
        ("evaluate", "--model", glm, "--suite", "bits-per-byte", "--data", rows),
    ):
        assert "prompts and their answers only" in refused(capsys, *arguments)
    assert "only Llamas" in refused(capsys, "export", "--model", glm, "--format", "gguf", *output)
    assert "tied embedding" in refused(
        capsys, "sft", "--model", glm, "--data", rows, "--template", "model", "--embeddings", "full", *output
    )
    assert not (tmp_path / "out").exists()
