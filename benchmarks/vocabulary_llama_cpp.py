"""Claim: llama.cpp cuts texts as SentencePiece and Hugging Face's tokenizers do, from a file that we exported.

LLaMA joined with chinese_sp.model, and with --smollm2 SmolLM2 with 4,000 learned pieces: each goes with a tiny random
Llama through `yangtuo export --format gguf` into llama.cpp (the wheel xllamacpp), whose ids of lines taken evenly from
../shared/data/corpora, and of awkward texts, are compared with those of our encoder and of AutoTokenizer.

    python benchmarks/vocabulary_llama_cpp.py [--smollm2 GGUF_OR_TOKENIZER_DIRECTORY] [--small]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

import xllamacpp
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from yangtuo.config.export import ExportConfig
from yangtuo.stages import export
from yangtuo.vocab.base import open_base
from yangtuo.vocab.directory import copy_tokenizer
from yangtuo.vocab.encoding import load_encoder
from yangtuo.vocab.scripts import compile_scripts
from yangtuo.weights.gguf import open_gguf

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
AWKWARD = [
    " 一",
    "  two  blanks   inside    ",
    "\ttab\tand\r\nline\n\n\nends",
    "</s><s>[INST]<unk><|im_end|><0x41>",
    "「全角」，ＡＢＣ　１２３～…——“引”",
    "🦙🦙🏽‍🚀 e\u0301 é ﬁ ½ ①",
    "𠀀𪚥鿿䶵〇",
    "2024年3月14日15:09，π≈3.14159",
    "def f(x):\n    return x**2  # 平方\n",
    "don't WE'LL it's I'M",
    "▁▁ ▁ a▁b",
    "a\u00a0b\u3000c\u200bd",
]


def sample_lines(most: int) -> dict[str, list[str]]:
    """At most about `most` lines of each language, taken evenly from all files."""
    sampled: dict[str, list[str]] = {"awkward": AWKWARD}
    for language in ("zh", "en"):
        files = sorted((DATA / "corpora" / language).rglob("*"))
        texts = [file.read_text(encoding="utf-8") for file in files if file.suffix in (".txt", ".md")]
        lines = [line for text in texts for line in text.split("\n") if line.strip()]
        sampled[language] = lines[:: max(len(lines) // most, 1)]
    return sampled


def start_llama_cpp(tokenizer: Path, directory: Path) -> Callable[[str], list[int]]:
    """llama.cpp's own cutting of a text, from a GGUF file of `tokenizer` and a tiny random model."""
    size = load_encoder(tokenizer).vocabulary_size
    config = LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(directory / "model")
    copy_tokenizer(tokenizer, directory / "model")
    made = export.run(ExportConfig(model=str(directory / "model"), output=directory / "gguf", format="gguf"))
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(made.path / "model.gguf")
    parameters.n_ctx, parameters.n_parallel, parameters.verbosity, parameters.port = 64, 1, 0, 0
    parameters.warmup = False
    server = xllamacpp.Server(parameters)

    def tokenize(text: str) -> list[int]:
        body = json.dumps({"content": text, "add_special": False, "parse_special": False}).encode()
        request = urllib.request.Request(server.listening_address + "/tokenize", body)
        with urllib.request.urlopen(request) as reply:
            return list(json.load(reply)["tokens"])

    return tokenize


def compare(name: str, tokenizer: Path, sampled: dict[str, list[str]], directory: Path) -> None:
    """Prints the lines on which engines differ, counted by language, and the first of them."""
    encoder, fast = load_encoder(tokenizer), AutoTokenizer.from_pretrained(tokenizer, split_special_tokens=True)
    tokenize = start_llama_cpp(tokenizer, directory)
    for language, lines in sampled.items():
        ours = encoder.encode_batch(lines)
        theirs = fast(lines, add_special_tokens=False).input_ids
        differing = [line for line, ids in zip(lines, ours, strict=True) if tokenize(line) != ids]
        fast_differing = sum(one != other for one, other in zip(ours, theirs, strict=True))
        print(
            f"{name}, {language}: {len(lines):,} lines, {sum(map(len, ours)):,} tokens; lines that llama.cpp cuts "
            f"otherwise {len(differing)}, that AutoTokenizer does {fast_differing}",
            flush=True,
        )
        for line in differing[:5]:
            print(f"    {line[:80]!r}: ours {encoder.encode(line)[:12]}, llama.cpp {tokenize(line)[:12]}")


def main() -> None:
    """Compares for both families."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    sampled, scripts = sample_lines(200 if arguments.small else 4000), compile_scripts(["Han"])
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        llama = directory / "llama-zh"
        base = open_base(DATA / "tokenizers/llama")
        base.merge(DATA / "tokenizers/chinese_sp.model", "faithful", scripts, ("<|im_end|>",), llama)
        compare("LLaMA + chinese_sp", llama, sampled, directory / "1")
        if arguments.smollm2:
            smollm2 = arguments.smollm2
            if smollm2.suffix == ".gguf":
                smollm2 = directory / "smollm2"
                open_gguf(arguments.smollm2).tokenizer.write(smollm2)
            base, pieces = open_base(smollm2), directory / "pieces"
            pieces.mkdir()
            texts = [file.read_text(encoding="utf-8") for file in sorted((DATA / "corpora/zh").glob("*.txt"))]
            base.learn(texts, 1000 if arguments.small else 4000, scripts, pieces)
            base.merge(pieces, "faithful", scripts, ("<|extra|>",), directory / "smollm2-zh")
            compare("SmolLM2 + learned", directory / "smollm2-zh", sampled, directory / "2")


if __name__ == "__main__":
    main()
