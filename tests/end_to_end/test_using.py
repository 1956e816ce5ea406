"""The two walks that people come for, by the command line alone, on small models.

Meta's weights, two adapters in the order of their training, a chat, the web page; and a test set through vLLM.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from tests.inference.test_engines import write_model
from tests.stages.conftest import _write_adapter
from transformers import AutoModelForCausalLM

from yangtuo.data.template import Message, get_template
from yangtuo.inference.vllm_engine import find_python
from yangtuo.training.adapter import quiet_peft
from yangtuo.vocab.encoding import load_encoder
from yangtuo.vocab.learn import sentencepiece_pieces


def yangtuo(*arguments: str, stdin: str | None = None) -> str:
    """What the command prints on stdout."""
    command = [sys.executable, "-m", "yangtuo", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def adapter_on(base: Path, directory: Path, tokenizer: Path, seed: int) -> Path:
    """An adapter as Chinese-LLaMA was published: a grown tokenizer, and embedding and head trained whole."""
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(load_encoder(tokenizer).vocabulary_size, mean_resizing=False)
    grown = directory.parent / f"{directory.name}-base"
    model.save_pretrained(grown)
    from yangtuo.vocab.directory import copy_tokenizer

    copy_tokenizer(tokenizer, grown)
    _write_adapter(directory, grown, seed, modules_to_save=["embed_tokens", "lm_head"])
    return directory


@pytest.fixture(scope="module")
def road(pico_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Meta's weights, and two published adapters: the first brings Chinese pieces, the second a padding token."""
    root = tmp_path_factory.mktemp("using")
    yangtuo("export", "--model", str(pico_model), "--format", "meta", "--output", str(root / "meta"))
    yangtuo("convert", "--source", str(root / "meta"), "--output", str(root / "base"))
    (root / "pieces.model").write_bytes(sentencepiece_pieces(["小", "镇", "小镇", "河"]))
    merging = ["tokenizer", "merge", "--base", str(root / "base"), "--style", "published"]
    merging += ["--pieces", str(root / "pieces.model")]
    yangtuo(*merging, "--output", str(root / "zh"))
    yangtuo(*merging, "--add-token", "[PAD]", "--output", str(root / "zh-pad"))
    first = adapter_on(root / "base", root / "llama-lora", root / "zh", 1)
    merged = root / "merged"
    yangtuo("merge", "--base", str(root / "base"), "--adapter", str(first), "--output", str(merged))
    second = adapter_on(merged, root / "alpaca-lora", root / "zh-pad", 2)
    return {"base": root / "base", "first": first, "second": second, "merged": merged, "root": root}


def given(road: dict[str, Path]) -> list[str]:
    return ["--model", str(road["base"]), "--adapter", str(road["first"]), "--adapter", str(road["second"])]


def test_from_metas_weights_and_two_adapters_to_a_chat(road: dict[str, Path]) -> None:
    """The reply is that of a model merged by PEFT."""
    said = yangtuo("chat", *given(road), "--with-prompt", "--once", "小镇 </s>", "--max-new-tokens", "8")
    encoder = load_encoder(road["second"])
    prompt = get_template("alpaca", None).encode_prompt(encoder, [Message("user", "小镇 </s>")])
    assert max(prompt) >= 400, "the question is written in pieces that the first adapter brought"
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(road["root"] / "llama-lora-base")
    with quiet_peft():
        model = PeftModel.from_pretrained(model, road["first"]).merge_and_unload()
        model.resize_token_embeddings(encoder.vocabulary_size, mean_resizing=False)
        model = PeftModel.from_pretrained(model, road["second"]).merge_and_unload()
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :].tolist()
    assert said.strip("\n") == encoder.decode([token for token in ids if token != encoder.eos_id]).strip()
    talked = yangtuo("chat", *given(road), "--with-prompt", "--max-new-tokens", "4", stdin="你好\n小河\n/exit\n")
    assert len(talked.splitlines()) >= 2


def test_and_to_the_page_on_port_8080(road: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="needs the extra `web`")
    pytest.importorskip("selenium", reason="needs selenium")
    from tests.serving.test_page import CHROMIUM, DRIVER, answered, browsing, shown

    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver")
    with socket.socket() as probe:
        port = 0 if probe.connect_ex(("127.0.0.1", 8080)) == 0 else 8080
    with (
        shown(*given(road), "--template", "alpaca", "--listen", "--password", "pass", port=port) as page,
        browsing(tmp_path) as browser,
    ):
        browser.get(page)
        fields = browser.find_elements("css selector", "input, textarea")
        fields[0].send_keys("me")
        fields[1].send_keys("pass\n")
        browser.find_element("css selector", "#say textarea").send_keys("小镇\n")
        assert answered(browser, 2)[0] == "小镇"


@pytest.mark.vllm
@pytest.mark.skipif(find_python() is None, reason="needs vLLM: set YANGTUO_VLLM_PYTHON")
def test_a_test_set_is_predicted_through_vllm(pico_tokenizer: Path, tmp_path: Path) -> None:
    """PromptCBLUE's rows, with an adapter, to the file that its competition takes; as transformers answers them."""
    model = write_model(pico_tokenizer, tmp_path / "model")
    adapter = _write_adapter(tmp_path / "adapter", model, 3, r=8)
    rows = [{"input": f"小镇 {n} </s>", "target": "", "sample_id": f"s{n}", "task_type": "ner"} for n in range(12)]
    source = tmp_path / "test.json"
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    outputs = []
    for engine in ("vllm", "transformers"):
        output = tmp_path / f"{engine}.jsonl"
        command = ["predict", "--model", str(model), "--adapter", str(adapter), "--engine", engine]
        command += ["--template", "alpaca", "--input", str(source), "--output", str(output), "--max-new-tokens", "12"]
        yangtuo(*command, "--submission")
        outputs.append(output.read_text("utf-8"))
        with zipfile.ZipFile(output.with_suffix(".zip")) as packed:
            sent = [json.loads(line) for line in packed.read("test_predictions.json").decode().splitlines()]
        assert [row["sample_id"] for row in sent] == [row["sample_id"] for row in rows]
    assert outputs[0] == outputs[1]
