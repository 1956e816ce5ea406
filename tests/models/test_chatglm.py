"""ChatGLM-6B without any real file: the arithmetic written out again, the ways it is loaded, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from yangtuo.errors import WeightsError
from yangtuo.models import register
from yangtuo.models.chatglm.config import ChatGLMConfig
from yangtuo.training.adapter import quiet_peft
from yangtuo.vocab import ice_text

register()


@pytest.fixture(scope="module")
def model(pico_glm: Path) -> Any:
    return load(pico_glm)


def load(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def prompt(config: Any, *words: int, answer: tuple[int, ...] = ()) -> list[int]:
    return [*words, config.gmask_token_id, config.bos_token_id, *answer]


def by_hand(model: Any, ids: list[int]) -> torch.Tensor:
    """Logits of one document, position by position and head by head, from the published facts alone."""
    config, state = model.config, {name: tensor.detach() for name, tensor in model.state_dict().items()}
    hidden, heads = config.hidden_size, config.num_attention_heads
    size, begin, mask = hidden // heads, ids.index(config.bos_token_id), ids.index(config.gmask_token_id)
    places = [(at, 0) if at < begin else (mask, at - begin + 1) for at in range(len(ids))]
    quarter = size // 4
    rates = torch.tensor([10000 ** (-2 * step / (size // 2)) for step in range(quarter)]).half().float()

    def turn(vector: torch.Tensor, at: int) -> torch.Tensor:
        result = vector.clone()
        for channel in range(2):
            for step in range(quarter):
                angle = places[at][channel] * rates[step]
                first = channel * (size // 2) + step
                left, right = vector[first], vector[first + quarter]
                result[first] = left * angle.cos() - right * angle.sin()
                result[first + quarter] = right * angle.cos() + left * angle.sin()
        return result

    def linear(name: str, states: torch.Tensor) -> torch.Tensor:
        return states @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, states: torch.Tensor) -> torch.Tensor:
        centred = states - states.mean(-1, keepdim=True)
        return (
            centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * state[f"{name}.weight"]
            + state[f"{name}.bias"]
        )

    states = state["transformer.word_embeddings.weight"][ids]
    for number in range(config.num_layers):
        layer = f"transformer.layers.{number}"
        normal = norm(f"{layer}.input_layernorm", states)
        joined = linear(f"{layer}.attention.query_key_value", normal)
        mixed = torch.zeros_like(states)
        for head in range(heads):
            part = joined[:, 3 * size * head : 3 * size * (head + 1)]
            queries, keys, values = part[:, :size], part[:, size : 2 * size], part[:, 2 * size :]
            keys = torch.stack([turn(key, at) for at, key in enumerate(keys)])
            for at in range(len(ids)):
                seen = [other for other in range(len(ids)) if other < begin or other <= at]
                scores = keys[seen] @ turn(queries[at], at) / math.sqrt(size)
                mixed[at, size * head : size * (head + 1)] = scores.softmax(0) @ values[seen]
        states = math.sqrt(56) * normal + linear(f"{layer}.attention.dense", mixed)
        normal = norm(f"{layer}.post_attention_layernorm", states)
        inner = linear(f"{layer}.mlp.dense_h_to_4h", normal)
        inner = 0.5 * inner * (1 + (math.sqrt(2 / math.pi) * (inner + 0.044715 * inner.pow(3))).tanh())
        states = math.sqrt(56) * normal + linear(f"{layer}.mlp.dense_4h_to_h", inner)
    return norm("transformer.final_layernorm", states) @ state["transformer.word_embeddings.weight"].T


def test_the_arithmetic_written_out_again(model: Any) -> None:
    """Alpha is that of 28 layers in a model of 2, the residual is normalised, q, k and v lie together in each head."""
    ids = prompt(model.config, *range(20, 30), answer=(40, 41, 42, 43))
    with torch.no_grad():
        assert (model(torch.tensor([ids])).logits[0] - by_hand(model, ids)).abs().max() < 1e-3


def test_rotary_frequencies_are_those_of_float16(model: Any) -> None:
    """At a place far out the rounding is no longer small."""
    ids = prompt(model.config, *([21, 22, 23, 24, 25] * 30), answer=(40, 41))
    with torch.no_grad():
        assert (model(torch.tensor([ids])).logits[0] - by_hand(model, ids)).abs().max() < 1e-3


def test_padding_packing_and_cache_change_nothing(model: Any) -> None:
    config = model.config
    rows = [prompt(config, 20, 21, 22, answer=(40, 41)), prompt(config, 30, answer=(50,))]
    with torch.no_grad():
        alone = [model(torch.tensor([row])).logits[0] for row in rows]
        width = max(map(len, rows)) + 2
        left = torch.tensor([[3] * (width - len(row)) + row for row in rows])
        right = torch.tensor([row + [3] * (width - len(row)) for row in rows])
        from_left = model(left, attention_mask=(left != 3).long()).logits
        from_right = model(right, attention_mask=(right != 3).long()).logits
        packed = torch.tensor([rows[0] + rows[1] + [config.eos_token_id] * 2])
        places = torch.tensor([[*range(len(rows[0])), *range(len(rows[1])), 0, 1]])
        together = model(packed, position_ids=places).logits[0]
    for number, (row, logits) in enumerate(zip(rows, alone, strict=True)):
        assert torch.allclose(from_left[number, width - len(row) :], logits, atol=1e-4)
        assert torch.allclose(from_right[number, : len(row)], logits, atol=1e-4)
    assert torch.allclose(together[: len(rows[0])], alone[0], atol=1e-4)
    assert torch.allclose(together[len(rows[0]) : -2], alone[1], atol=1e-4)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_generation_with_and_without_cache(pico_glm: Path, implementation: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(pico_glm, dtype=torch.float32, attn_implementation=implementation)
    rows = [prompt(model.config, 20, 21, 22), prompt(model.config, 30)]
    ids = torch.tensor([[3] * (5 - len(row)) + row for row in rows])
    options: dict[str, Any] = {"attention_mask": (ids != 3).long(), "max_new_tokens": 8, "do_sample": False}
    cached = model.generate(ids, **options, use_cache=True)
    assert torch.equal(cached, model.generate(ids, **options, use_cache=False))
    alone = model.generate(torch.tensor([rows[1]]), max_new_tokens=8, do_sample=False)
    assert torch.equal(cached[1, 5:][: alone.shape[1] - 3], alone[0, 3:])


def test_ids_without_a_place_to_answer_are_refused(model: Any) -> None:
    for ids in ([20, 21], [20, model.config.gmask_token_id], [20, model.config.bos_token_id, 21]):
        with pytest.raises(ValueError, match="<sop>"):
            model(torch.tensor([ids]))


def test_published_directories_load_without_their_code(pico_glm: Path, model: Any, tmp_path: Path) -> None:
    """`auto_map` names code, .bin shards hold a second head and stale frequencies; safetensors do as well."""
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    copied = shutil.copytree(pico_glm, tmp_path / "copied", ignore=shutil.ignore_patterns("pytorch_model*"))
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors["lm_head.weight"] = torch.randn_like(tensors["lm_head.weight"])
    save_file(tensors, copied / "model.safetensors", {"format": "pt"})
    again = load(copied)
    ids = torch.tensor([prompt(model.config, 20, 21)])
    assert again.lm_head.weight is again.transformer.word_embeddings.weight, "the embedding wins over another head"
    assert torch.equal(again(ids).logits, model(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(pico_glm)
    assert tokenizer("你好")["input_ids"][-2:] == [tokenizer.gmask_token_id, model.config.bos_token_id]
    again.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved")(ids).logits, model(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("你好 <eop> 吗") == tokenizer("你好 <eop> 吗")


def test_the_first_checkpoints_with_image_tokens(pico_ice_model: bytes, tmp_path: Path) -> None:
    """150,528 rows: every id stands 20,000 higher, and the config does not say where the mask tokens are."""
    values = {"model_type": "chatglm", "vocab_size": 150528, "bos_token_id": 150004, "eos_token_id": 150005}
    config = ChatGLMConfig.from_dict({**values, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2})
    assert (config.mask_token_id, config.gmask_token_id, config.pad_token_id) == (150000, 150001, 20003)
    published = ChatGLMConfig()
    assert (published.mask_token_id, published.gmask_token_id, published.pad_token_id) == (130000, 130001, 3)
    config.save_pretrained(tmp_path)
    (tmp_path / ice_text.MODEL_FILE).write_bytes(pico_ice_model)
    settings = {"tokenizer_class": "ChatGLMTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    shifted = AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "num_image_tokens": 0}), encoding="utf-8")
    plain = AutoTokenizer.from_pretrained(tmp_path)
    assert shifted("去公园\n散步")["input_ids"] == [index + 20000 for index in plain("去公园\n散步")["input_ids"]]
    assert shifted.decode(shifted("去公园\n散步")["input_ids"]) == "去公园\n散步"
    assert shifted.convert_ids_to_tokens(7) == "<image_7>"
    model = AutoModelForCausalLM.from_config(config)
    assert model(torch.tensor([[20100, 150001, 150004]])).logits.shape == (1, 3, 150528)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"multi_query_attention": True, "ffn_hidden_size": 64}, "ChatGLM2"),
        ({"quantization_bit": 4}, "quantization_bit 4"),
        ({"pre_seq_len": 128}, "pre_seq_len 128"),
        ({"position_encoding_2d": False}, "position_encoding_2d False"),
    ],
)
def test_other_models_of_the_name_are_refused(tmp_path: Path, values: dict[str, Any], named: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "chatglm", **values}), encoding="utf-8")
    with pytest.raises(WeightsError, match=named):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_reaches_every_lora_tensor(
    pico_ice_model: bytes, write_pico_glm: Callable[..., Path], tmp_path: Path, reentrant: bool
) -> None:
    """The kind that recomputes by re-entering needs inputs with gradients, which transformers must find for it."""
    model = load(write_pico_glm(tmp_path / "model", pico_ice_model, num_layers=3))
    with quiet_peft():
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["query_key_value", "dense"])).train()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    adapted.enable_input_require_grads()
    ids = torch.tensor([prompt(model.config, 20, 21, answer=(40, 41))])
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    logits = adapted(input_ids=ids).logits
    functional.cross_entropy(logits[0, 3:5], ids[0, 4:6]).backward()
    norms = {
        name: float(p.grad.norm()) for name, p in adapted.named_parameters() if p.requires_grad and p.grad is not None
    }
    assert len(norms) == 3 * 2 * 2 and all(norm > 0 for norm in norms.values())
