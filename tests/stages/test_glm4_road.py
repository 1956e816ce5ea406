"""GLM-4, as transformers has it, through the verbs with a chat template of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Glm4Config, Glm4ForCausalLM, GlmConfig, GlmForCausalLM

from yangtuo import cli
from yangtuo.data.template import Message, get_template
from yangtuo.training.metrics_log import read_metrics
from yangtuo.vocab.encoding import load_encoder

CONTROLS = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"]
CONTROLS += ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ROWS = [{"instruct": f"Say {word}.", "query": "", "answer": f"{word}_word"} for word in ("one", "two", "six", "ten")]


@pytest.fixture(scope="module", params=["glm", "glm4"])
def glm4(request: pytest.FixtureRequest, pico_byte_level: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory shaped as glm-4-9b-chat-hf: JSON only, no BOS, several stop ids, the template in the settings."""
    directory: Path = tmp_path_factory.mktemp("published") / request.param
    directory.mkdir()
    content = json.loads((pico_byte_level / "tokenizer.json").read_text(encoding="utf-8"))
    first = max(content["model"]["vocab"].values()) + 1
    entry = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] = [{"id": first + at, "content": text, **entry} for at, text in enumerate(CONTROLS)]
    (directory / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "chat_template": TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    ends = [first + CONTROLS.index(text) for text in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    shape: dict[str, Any] = {
        "vocab_size": first + len(CONTROLS) + 6,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": ends[0],
        "eos_token_id": ends,
    }
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if request.param == "glm":
            GlmForCausalLM(GlmConfig(**shape)).save_pretrained(directory)
        else:
            Glm4ForCausalLM(Glm4Config(**shape)).save_pretrained(directory)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, "pad_token_id": ends[0]}))
    return directory


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    capsys.readouterr()
    assert cli.invoke([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_its_own_template_writes_its_prompts(glm4: Path) -> None:
    """[gMASK]<sop> opens the conversation; what a user types stays text, and a reply ends where GLM-4's do."""
    encoder, template = load_encoder(glm4), get_template("model", glm4)
    ids = template.encode_prompt(encoder, [Message("user", "Say <|user|> [gMASK].")])
    controls = {index: text for text, index in encoder.controls.items()}
    written = [controls[token] for token in ids if token in controls]
    assert written == ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>"]
    assert encoder.controls["<|endoftext|>"] in template.stop_ids(encoder)


def test_it_is_trained_merged_asked_and_scored(glm4: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, ROWS)) + "\n", encoding="utf-8")
    layers = run(capsys, "inspect", glm4)["lora_layers"]
    assert {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"} == set(layers)
    options = ("--template", "model", "--max-length", 64, "--rank", 8, "--learning-rate", 5e-3, "--epochs", 300)
    options += ("--batch-size", 4, "--dtype", "float32", "--gradient-checkpointing")  # type: ignore[assignment]
    run(capsys, "sft", "--model", glm4, "--data", rows, *options, "--output", tmp_path / "adapter")
    losses = [row["loss"] for row in read_metrics(tmp_path / "adapter") if "loss" in row]
    assert losses[-1] < losses[0] / 10
    merged = ("--prove", "Say one.", "--output", tmp_path / "merged")
    facts = run(capsys, "merge", "--base", glm4, "--adapter", tmp_path / "adapter", *merged)
    assert facts["proof"]["compared"] == "logits"
    capsys.readouterr()
    chat = ["chat", "--model", tmp_path / "merged", "--once", "Say two.", "--max-new-tokens", 8]
    assert cli.invoke(list(map(str, chat))) == 0
    assert capsys.readouterr().out.strip() in {row["answer"] for row in ROWS}
    scored = run(capsys, "evaluate", "--model", tmp_path / "merged", "--suite", "ner", "--data", rows)
    assert scored["f1"] > 0
