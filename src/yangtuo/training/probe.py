"""Whether an architecture trains here as it does in transformers, tried on a small copy before weights are read.

The copy has the model's config with one layer of each kind, two at least, narrow feed-forward layers and random
weights. Its loss is compared with transformers' own, and two documents packed into one block with each on its own:
states that run through a sequence (state-space, linear attention, convolutions) pass packed documents on, which
position ids do not stop, and then training would be on contexts that never occur.
"""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from yangtuo.errors import TrainingError, UserError
from yangtuo.training import attention
from yangtuo.training.loss import IGNORED, use_sliced_loss

_VOCABULARY, _NARROW, _EXPERTS = 128, 64, 8
_LENGTHS = (7, 9)  # tokens of the two documents
# ChatGLM reads a document only with its marks in it: a mask token, and <sop> where the answer begins.
_MARKS = {"mask_token_id": 124, "gmask_token_id": 125, "bos_token_id": 126, "eos_token_id": 127}
_TOLERANCE = 2e-3  # of the loss, relative; a document that sees another moves it by a tenth and more
_BREAKS = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, ImportError, AssertionError)


def choose_attention(config: PretrainedConfig, asked: str = "auto") -> str:
    """The attention that the model of `config` trains with: what was `asked` for, or else our own on a CPU where it is
    equal, and transformers' where not. FlashAttention, which knows no CPU, is tried as SDPA.

    Raises `TrainingError`, with the reason, for an architecture that does not train right under either.
    """
    values = {name: value for name, value in config.to_dict().items() if not name.startswith("_")}
    own = () if torch.cuda.is_available() else (attention.NAME,)
    is_flash = asked == "flash_attention_2"
    offered = (*own, "sdpa", "eager") if asked == "auto" else ("sdpa",) if is_flash else (asked,)
    chosen = _chosen(config.model_type, json.dumps(values, sort_keys=True, default=str), offered)
    if isinstance(chosen, UserError):
        raise chosen
    return asked if is_flash else chosen


@lru_cache(maxsize=16)
def _chosen(model_type: str, values: str, offered: tuple[str, ...]) -> str | TrainingError:
    reason: str | None = None
    with torch.random.fork_rng(devices=[]):
        for name in offered:
            try:
                reason = _difference(_small(model_type, json.loads(values)), name)
            except _BREAKS as error:
                reason = (
                    f"a small copy of it does not run: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
                )
            if reason is None:
                return name
    return TrainingError(
        f"models of the architecture {model_type} cannot be trained right here",
        found=reason,
        expected="an architecture that docs/architectures.md lists as trained, such as llama, qwen2 or gemma2",
    )


def _small(model_type: str, values: dict[str, Any]) -> PretrainedConfig:
    """The config with one layer of each kind, two at least, a small vocabulary and narrow feed-forward layers."""
    kinds: list[str] = list(dict.fromkeys(values.get("layer_types") or values.get("block_types") or ()))
    layers = max(2, len(kinds))
    if values.get("layer_types"):
        values["layer_types"] = (kinds * 2)[:layers]
    for name in ("num_hidden_layers", "n_layer", "num_layers"):
        if isinstance(values.get(name), int):
            values[name] = layers
    for name in (
        "intermediate_size",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "n_inner",
        "ffn_dim",
        "inner_hidden_size",
    ):
        if isinstance(values.get(name), int):
            values[name] = min(values[name], _NARROW)
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if isinstance(values.get(name), int) and values[name] > _EXPERTS:
            values[name] = _EXPERTS
    for name in ("n_group", "topk_group"):
        if name in values:
            values[name] = 1
    for name in ("linear_num_key_heads", "linear_num_value_heads"):
        if name in values:
            values[name] = 2
    for name in ("num_experts_per_tok", "moe_topk", "top_k_experts"):
        if isinstance(values.get(name), int):
            values[name] = min(values[name], 2)
    values |= {"vocab_size": _VOCABULARY, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    if "gmask_token_id" in values:
        values |= _MARKS
    values.pop("model_type", None)
    for name in ("quantization_config", "dtype", "torch_dtype", "architectures", "auto_map"):
        values.pop(name, None)
    return AutoConfig.for_model(model_type, **values)


def _difference(config: PretrainedConfig, name: str) -> str | None:
    """What is wrong with training under the attention `name`, or None."""
    reference = _model(config, "eager" if name == "eager" else "sdpa")
    model = _model(config, name)
    model.load_state_dict(reference.state_dict())
    attention.keep_documents_apart(model)
    use_sliced_loss(model)
    generator = torch.Generator().manual_seed(0)
    first, second = (_document(config, length, generator) for length in _LENGTHS)
    alone = [_loss(reference, ids, ids) for ids in (first, second)]
    unpacked = _loss(model, second, second)
    if not _near(unpacked, alone[1]):
        return f"its loss is {unpacked:.4f} here and {alone[1]:.4f} in transformers"
    positions = torch.cat([torch.arange(length) for length in _LENGTHS])[None]
    labels = torch.cat([torch.full_like(first, IGNORED), second], dim=1)
    labels[0, _LENGTHS[0]] = IGNORED  # no document says how another begins
    packed = _loss(model, torch.cat([first, second], dim=1), labels, positions)
    if not _near(packed, alone[1]):
        return (
            f"documents packed into one block see each other: a loss of {packed:.4f} instead of {alone[1]:.4f} "
            "(its layers carry a state through the sequence, or do not look at where position ids restart)"
        )
    return None


def _document(config: PretrainedConfig, length: int, generator: torch.Generator) -> Tensor:
    """Random ids (1, length), with the marks of an answer where the architecture needs them."""
    ids = torch.randint(3, _VOCABULARY, (1, length), generator=generator)
    if getattr(config, "gmask_token_id", None) is not None:
        ids %= min(_MARKS.values())
        ids[0, 2:4] = torch.tensor([_MARKS["gmask_token_id"], _MARKS["bos_token_id"]])
    return ids


def _model(config: PretrainedConfig, name: str) -> PreTrainedModel:
    """A model of `config` whose random weights are large enough that everything matters, in float32."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        copy.deepcopy(config), attn_implementation=name, dtype=torch.float32, trust_remote_code=False
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
    model.train()
    return model


def _loss(model: PreTrainedModel, ids: Tensor, labels: Tensor, positions: Tensor | None = None) -> float:
    extra = {} if positions is None else {"position_ids": positions}
    torch.manual_seed(0)
    with torch.no_grad():
        return float(model(input_ids=ids, labels=labels, use_cache=False, **extra).loss)


def _near(value: float, expected: float) -> bool:
    return abs(value - expected) <= _TOLERANCE * abs(expected)
