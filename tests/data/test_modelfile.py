"""Modelfiles: what Ollama would make of a talk has the ids that training had.

Ollama itself is no package. Its templates are rendered here by the few constructs that ours are written in, and by Go
where there is one; what comes out is cut into tokens by the real llama.cpp, as Ollama does it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from yangtuo.config.export import ExportConfig
from yangtuo.data.modelfile import find_frame, write_modelfile
from yangtuo.data.template import Message, Template, get_template
from yangtuo.stages import export
from yangtuo.vocab.directory import copy_tokenizer
from yangtuo.vocab.encoding import Encoder, load_encoder

xllamacpp = pytest.importorskip("xllamacpp", reason="needs the wheel xllamacpp: llama.cpp")
pytest.importorskip("gguf", reason="needs the extra `export`")

LLAMA_3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
QUESTION = '你好 🦙, what is 1998?\n\n### Response: {{ .System }} """ {% x %}'
TALKS = [
    [Message("user", QUESTION)],
    [Message("system", "Be brief. 简短"), Message("user", QUESTION)],
    [Message("user", "the cat"), Message("assistant", "小镇, a town"), Message("user", QUESTION)],
    [
        Message("system", "Be brief."),
        *(Message(role, f"{role} {number}") for number in range(2) for role in ("user", "assistant")),
        Message("user", "再见"),
    ],
]
GO = """
package main

import ("encoding/json"; "os"; "text/template")

type Message struct { Role, Content string }

func main() {
	var given struct { Template, System string; Messages []*Message }
	json.NewDecoder(os.Stdin).Decode(&given)
	made := template.Must(template.New("").Parse(given.Template))
	made.Execute(os.Stdout, map[string]any{"System": given.System, "Messages": given.Messages})
}
"""


def model_with(tokenizer: Path, template: str, directory: Path) -> Path:
    """A random Llama with the tokenizer and the named template."""
    rows = load_encoder(tokenizer).vocabulary_size
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(11)
    LlamaForCausalLM(LlamaConfig(vocab_size=rows, max_position_embeddings=256, **shape)).save_pretrained(directory)
    copy_tokenizer(tokenizer, directory)
    (directory / "chat_template.jinja").write_text(get_template(template, None).jinja, encoding="utf-8")
    return directory


def with_tokens(tokenizer: Path, tokens: Sequence[str], directory: Path) -> Path:
    """A copy of a byte-level tokenizer with more control tokens."""
    from tokenizers import Tokenizer

    shutil.copytree(tokenizer, directory)
    changed = Tokenizer.from_file(str(directory / "tokenizer.json"))
    changed.add_special_tokens(list(tokens))
    changed.save(str(directory / "tokenizer.json"))
    return directory


def read_modelfile(path: Path) -> tuple[str, list[str]]:
    """TEMPLATE and the stops, as Ollama's parser takes them."""
    text = path.read_text("utf-8")
    template = re.search(r'^TEMPLATE """(.*?)"""$', text, re.DOTALL | re.MULTILINE)
    assert template and "\nFROM ./model.gguf\n" in text
    return template[1], re.findall(r'^PARAMETER stop "(.*)"$', text, re.MULTILINE)


def render(template: str, messages: Sequence[Message]) -> str:
    """What Go's templates make of the constructs that ours are written in."""
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    pieces = re.split(r"(\{\{.*?\}\})", template)

    def block(at: int, message: Message | None, *, shown: bool) -> tuple[str, int]:
        """The text from piece `at` to the action that ends the block, and where that stands."""
        text = ""
        while at < len(pieces):
            piece = pieces[at]
            action = piece[2:-2].strip() if piece.startswith("{{") else None
            if action is not None and re.match(r"end|else", action):
                break
            part = piece
            if action == "range .Messages":
                part = "".join(block(at + 1, each, shown=shown)[0] for each in messages)
                at = block(at + 1, None, shown=False)[1]
            elif action and action.startswith("if "):
                part, at = branches(at, message, shown=shown)
            elif action == ".System":
                part = system
            elif action == ".Content":
                part = message.content if message else ""
            elif action is not None:
                part = str(json.loads(re.sub(r"\\U0000(....)", r"\\u\1", action)))
            text += part if shown else ""
            at += 1
        return text, at

    def branches(at: int, message: Message | None, *, shown: bool) -> tuple[str, int]:
        text, done = "", False
        while (action := pieces[at][2:-2].strip()) != "end":
            wanted = re.search(r'eq \.Role "(\w+)"', action)
            is_true = (message is not None and message.role == wanted[1]) if wanted else bool(system)
            is_true = is_true or action == "else"
            part, at = block(at + 1, message, shown=shown and is_true and not done)
            text, done = text + part, done or is_true
        return text, at

    return block(0, None, shown=True)[0]


class LlamaCpp:
    """The real tokenizer of llama.cpp, over a GGUF file."""

    def __init__(self, file: Path) -> None:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.n_ctx, parameters.n_parallel, parameters.verbosity, parameters.port = 256, 1, 0, 0
        parameters.warmup = False
        self.server = xllamacpp.Server(parameters)

    def ids(self, text: str) -> list[int]:
        """As Ollama asks for it: BOS as the file says, control tokens by their text."""
        body = {"content": text, "add_special": True, "parse_special": True}
        request = urllib.request.Request(f"{self.server.listening_address}/tokenize", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as reply:
            return list(json.load(reply)["tokens"])


@pytest.mark.parametrize("template", ["alpaca", "alpaca-2", "chatml", "llama-3"])
def test_a_talk_has_the_ids_of_training(
    template: str, pico_tokenizer: Path, pico_byte_level: Path, tmp_path: Path
) -> None:
    tokenizer = pico_tokenizer if template.startswith("alpaca") else pico_byte_level
    if template == "llama-3":
        tokenizer = with_tokens(pico_byte_level, LLAMA_3, tmp_path / "tokenizer")
    model = model_with(tokenizer, template, tmp_path / "model")
    made = export.run(ExportConfig(model=str(model), format="gguf", output=tmp_path / "out")).path
    ollama, stops = read_modelfile(made / "Modelfile")
    encoder, own = load_encoder(model), get_template(template, None)
    assert stops == [encoder.pieces[token] for token in own.stop_ids(encoder)]
    llama_cpp = LlamaCpp(made / "model.gguf")
    for messages in TALKS:
        assert llama_cpp.ids(render(ollama, messages)) == own.encode_prompt(encoder, messages)


@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go")
@pytest.mark.parametrize("template", ["alpaca", "alpaca-2", "chatml"])
def test_go_renders_as_the_test_above_does(
    template: str, pico_tokenizer: Path, pico_byte_level: Path, tmp_path: Path
) -> None:
    (tmp_path / "main.go").write_text(GO)
    encoder = load_encoder(pico_byte_level if template == "chatml" else pico_tokenizer)
    text, problem = write_modelfile("model.gguf", get_template(template, None), encoder, adds_bos=template != "chatml")
    assert problem is None
    (tmp_path / "Modelfile").write_text(text)
    ollama, _ = read_modelfile(tmp_path / "Modelfile")
    for messages in TALKS:
        given: dict[str, Any] = {"Template": ollama, "System": ""}
        given["System"] = "".join(message.content for message in messages if message.role == "system")
        given["Messages"] = [{"Role": message.role, "Content": message.content} for message in messages]
        command = ["go", "run", str(tmp_path / "main.go")]
        made = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=True)
        assert made.stdout == render(ollama, messages)


def frame_of(jinja: str, encoder: Encoder) -> Any:
    return find_frame(Template("model", jinja), encoder)


def test_templates_that_are_no_frame_are_said(pico_tokenizer: Path) -> None:
    encoder = load_encoder(pico_tokenizer)
    plain = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    assert frame_of(plain + "{{ 'bot: ' }}", encoder) is None, "the last answer is asked for otherwise"
    counted = "{% for m in messages %}{{ loop.index ~ m.content }}{% endfor %}"
    assert frame_of(counted, encoder) is None
    upper = "{% for m in messages %}{{ m.content | upper }}{% endfor %}!"
    assert frame_of(upper + "{{ messages[0].content }}", encoder) is None
    no_system = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    no_system += "{{ m.content + '/' }}{% endfor %}"
    frame = frame_of(no_system, encoder)
    assert frame is not None and frame.system is None
    text, problem = write_modelfile("model.gguf", Template("model", no_system), encoder, adds_bos=True)
    assert problem and "<s>" in problem and f"# {problem}" in text
    text, problem = write_modelfile("model.gguf", Template("model", counted), encoder, adds_bos=False)
    assert problem and "{{ .Prompt }}" in text
    assert write_modelfile("model.gguf", None, encoder, adds_bos=True)[1] is None


def test_what_a_modelfile_drops_or_reads_is_quoted(pico_tokenizer: Path) -> None:
    """Ollama's parser drops what is not printed and ends at three quotes; Go begins an action at two braces."""
    encoder = load_encoder(pico_tokenizer)
    jinja = "{% for m in messages %}{{ '\u3000{' ~ '{\"\"\"' ~ m.content ~ '</s>' }}{% endfor %}"
    text, problem = write_modelfile("model.gguf", Template("model", jinja), encoder, adds_bos=False)
    assert problem is None
    template = text.split('TEMPLATE """')[1].rsplit('"""', 1)[0]
    assert '"""' not in template and "\u3000" not in template
    assert render(template, [Message("user", "x")]) == '\u3000{{"""x</s>'
