"""Model directories shaped as hubs have them, small and built in memory: one function a shape, `SHAPES` lists them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SETTINGS = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def _write(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1), encoding="utf-8")


def _model(directory: Path, kind: str, rows: int, **config: Any) -> Path:
    """The config and weights of a random model of the family `kind`."""
    settings = AutoConfig.for_model(kind, **{**SMALL, "vocab_size": rows, **config})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    model.save_pretrained(directory)
    return directory


def _edit(directory: Path, **changes: Any) -> None:
    """Changes keys of config.json; None takes one out."""
    values = {**json.loads((directory / "config.json").read_text()), **changes}
    _write(directory / "config.json", {key: value for key, value in values.items() if value is not None})


def _sentencepiece(directory: Path, model: bytes, **settings: Any) -> int:
    """tokenizer.model, and the tokenizer.json and settings as transformers writes them; returns the number of ids."""
    (directory / "tokenizer.model").write_bytes(model)
    _write(directory / "tokenizer_config.json", {**SETTINGS, **settings})
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _write(directory / "tokenizer_config.json", {**SETTINGS, **settings})
    return len(tokenizer)


def _byte_level(directory: Path, source: Path, **settings: Any) -> int:
    shutil.copyfile(source / "tokenizer.json", directory / "tokenizer.json")
    _write(directory / "tokenizer_config.json", settings)
    return int(AutoTokenizer.from_pretrained(directory).backend_tokenizer.get_vocab_size())


def llama_both(directory: Path, model: bytes, _: Path) -> None:
    """Llama 2 as the hub has it: tokenizer.model and tokenizer.json."""
    directory.mkdir()
    _model(directory, "llama", _sentencepiece(directory, model), bos_token_id=1, eos_token_id=2)


def llama_json(directory: Path, model: bytes, _: Path) -> None:
    """A Llama that transformers 5 has saved: tokenizer.json alone."""
    llama_both(directory, model, _)
    (directory / "tokenizer.model").unlink()


def mistral(directory: Path, model: bytes, _: Path) -> None:
    """Mistral: its own params.json and consolidated.safetensors lie beside Hugging Face's files."""
    directory.mkdir()
    rows = _sentencepiece(directory, model)
    _model(directory, "mistral", rows, sliding_window=64, rope_theta=1e6, bos_token_id=1, eos_token_id=2)
    own = {"tok_embeddings.weight": load_file(directory / "model.safetensors")["model.embed_tokens.weight"]}
    save_file(own, directory / "consolidated.safetensors")
    _write(directory / "params.json", {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": rows})


def gemma(directory: Path, model: bytes, _: Path) -> None:
    """Gemma 2: tied by its class's default, control tokens that are user-defined pieces, soft caps."""
    directory.mkdir()
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    for text in ("<start_of_turn>", "<end_of_turn>"):
        proto.pieces.add(piece=text, score=0.0, type=4)
    proto.normalizer_spec.add_dummy_prefix = False
    template = (
        "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' "
        "else message['role']) + '\n' + message['content'] + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    )
    kind = "GemmaTokenizer"
    rows = _sentencepiece(directory, proto.SerializeToString(), tokenizer_class=kind, chat_template=template)
    _model(directory, "gemma2", rows, head_dim=16, query_pre_attn_scalar=16, bos_token_id=1, eos_token_id=2)
    _edit(directory, tie_word_embeddings=None)


def qwen(directory: Path, _: bytes, source: Path) -> None:
    """Qwen 2.5: no BOS, more rows than ids, the end of replies in generation_config.json alone."""
    directory.mkdir()
    ids = _byte_level(
        directory, source, tokenizer_class="Qwen2Tokenizer", bos_token=None, eos_token="<|endoftext|>", unk_token=None,
        add_bos_token=False, chat_template=CHATML,
    )  # fmt: skip
    _model(directory, "qwen2", ids + 24, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None)
    _write(directory / "generation_config.json", {"eos_token_id": [2, 0], "pad_token_id": 0})


def phi(directory: Path, _: bytes, source: Path) -> None:
    """Phi 2: a head with a bias, part of each head rotated, a tokenizer whose one control token is everything."""
    directory.mkdir()
    token = "<|endoftext|>"
    kind = "CodeGenTokenizer"
    ids = _byte_level(directory, source, tokenizer_class=kind, bos_token=token, eos_token=token, unk_token=token)
    _model(directory, "phi", ids, partial_rotary_factor=0.5, num_key_value_heads=4, bos_token_id=0, eos_token_id=0)


def hermes(directory: Path, model: bytes, _: Path) -> None:
    """A Mistral that was tuned to ChatML: two tokens beyond its SentencePiece model, one of them EOS."""
    directory.mkdir()
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    size, texts = len(proto.pieces), ("<|im_start|>", "<|im_end|>")
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    decoder = {str(size + number): {"content": text, **flags} for number, text in enumerate(texts)}
    settings = {"eos_token": "<|im_end|>", "added_tokens_decoder": decoder, "chat_template": CHATML}
    rows = _sentencepiece(directory, model, **settings)
    _write(directory / "added_tokens.json", {text: size + number for number, text in enumerate(texts)})
    _model(directory, "mistral", rows, sliding_window=None, bos_token_id=1, eos_token_id=size + 1)


def glm(directory: Path, _: bytes, source: Path) -> None:
    """GLM-4: part of each head rotated, attention with biases, several ends of a reply, no BOS."""
    directory.mkdir()
    template = (
        "<|im_start|>{% for message in messages %}{{ '\n' + message['role'] + '\n' + message['content'] }}"
        "{% if message['role'] == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\nassistant\n' }}{% endif %}"
    )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None, "eos_token": "<|endoftext|>"}
    ids = _byte_level(directory, source, **settings, chat_template=template)
    ends = {"eos_token_id": [0, 2], "pad_token_id": 0}
    _model(directory, "glm4", ids, head_dim=8, attention_bias=True, bos_token_id=None, **ends)
    _write(directory / "generation_config.json", ends)


def smollm(directory: Path, _: bytes, source: Path) -> None:
    """SmolLM 2: a tied Llama with a byte-level tokenizer and ChatML."""
    directory.mkdir()
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    settings = {"tokenizer_class": "GPT2Tokenizer", **names, "chat_template": CHATML}
    ids = _byte_level(directory, source, **settings)
    _model(directory, "llama", ids, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2)


def llama_2023(directory: Path, model: bytes, _: Path) -> None:
    """The first LLaMA on the hub: shards of .bin with rotary buffers, wrong special ids, empty special tokens."""
    directory.mkdir()
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    _model(directory, "llama", len(proto.pieces))
    state = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    state |= {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in range(2)}
    index = {}
    for number in (1, 2):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        names = sorted(state)[number - 1 :: 2]
        torch.save({name: state[name].clone() for name in names}, directory / file)
        index |= dict.fromkeys(names, file)
    _write(directory / "pytorch_model.bin.index.json", {"metadata": {"total_size": 1}, "weight_map": index})
    _edit(directory, architectures=["LLaMAForCausalLM"], bos_token_id=0, eos_token_id=1, pad_token_id=-1)
    (directory / "generation_config.json").unlink(missing_ok=True)
    (directory / "tokenizer.model").write_bytes(model)
    empty = {"bos_token": "", "eos_token": "", "unk_token": "", "tokenizer_class": "LLaMATokenizer"}
    _write(directory / "tokenizer_config.json", empty)
    _write(directory / "special_tokens_map.json", {})


def lfm2(directory: Path, model: bytes, _: Path) -> None:
    """LFM2: convolutions between the attention layers, which carry packed documents into each other."""
    directory.mkdir()
    kinds = ["conv", "full_attention"]
    rows = _sentencepiece(directory, model)
    _model(directory, "lfm2", rows, layer_types=kinds, bos_token_id=1, eos_token_id=2, pad_token_id=0)


SHAPES: dict[str, Callable[[Path, bytes, Path], None]] = {
    "Llama": llama_both,
    "Llama, JSON only": llama_json,
    "LLaMA of 2023": llama_2023,
    "Mistral": mistral,
    "Mistral with ChatML": hermes,
    "SmolLM2": smollm,
    "Gemma 2": gemma,
    "Qwen 2.5": qwen,
    "Phi 2": phi,
    "GLM-4": glm,
    "LFM2": lfm2,
}
"""Name of the shape -> what writes it, given a directory, a SentencePiece model and a byte-level tokenizer."""
