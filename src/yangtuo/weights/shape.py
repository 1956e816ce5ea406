"""A model's shape, as transformers' own config classes say it with their defaults, and what differs by family.

No other code looks into config.json for heads, rotary scaling, tying or the names of embedding and head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yangtuo import models
from yangtuo.errors import UserError, WeightsError

_LARGEST = 3.4e38  # of what arithmetic and formats hold as float32


@dataclass(frozen=True)
class Family:
    """How a family's checkpoints name embedding and head, and which other layouts can hold its models."""

    embedding: str = "model.embed_tokens.weight"
    head: str = "lm_head.weight"
    layouts: frozenset[str] = frozenset()
    """Of gguf and meta."""
    conv1d: bool = False
    """Whether linear layers are stored as (in, out)."""
    prompts_only: bool = False
    """Whether a text must be a prompt and an answer, since positions and mask follow from where the one ends."""


_LLAMA = Family(layouts=frozenset({"gguf", "meta"}))
USUAL = Family()
# Families whose names differ from Llama's, and those that fit into Llama's other layouts.
FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "bloom": Family("transformer.word_embeddings.weight"),
    "chatglm": Family("transformer.word_embeddings.weight", prompts_only=True),
    "codegen": Family("transformer.wte.weight"),
    "falcon": Family("transformer.word_embeddings.weight"),
    "gpt2": Family("transformer.wte.weight", conv1d=True),
    "gpt_bigcode": Family("transformer.wte.weight"),
    "gpt_neo": Family("transformer.wte.weight"),
    "gpt_neox": Family("gpt_neox.embed_in.weight", "embed_out.weight"),
    "gptj": Family("transformer.wte.weight"),
    "mpt": Family("transformer.wte.weight"),
    "opt": Family("model.decoder.embed_tokens.weight"),
}


@dataclass(frozen=True)
class ModelShape:
    """What decides how a decoder's tensors are read; all sizes in elements."""

    model_type: str
    family: Family
    hidden_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int | None
    vocabulary_size: int
    context_length: int
    tied: bool
    """Whether the head is the embedding."""
    norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    """Rotary scaling with its rope_type, or None where positions are not scaled."""
    partial_rotary: float
    """Share of a head's dimensions that are rotated."""
    biases: bool
    """Whether attention or feed-forward layers have biases that Llama's lack."""
    sliding_window: int | None
    """Positions that a sliding layer looks back, or None."""
    logit_softcap: float | None
    """The head's logits are squashed into ±this by tanh (Gemma 2)."""
    logit_scale: float
    """The head's logits are multiplied by this (Cohere, Granite, Falcon H1)."""

    @property
    def embedding(self) -> str:
        """Name of the embedding's matrix (rows, hidden_size)."""
        return self.family.embedding

    @property
    def head(self) -> str:
        """Name of the head's matrix, absent where it is tied."""
        return self.family.head

    @property
    def head_bias(self) -> str:
        """Name of the head's bias (rows,), which few families have (Phi, GPT-J)."""
        return self.family.head.removesuffix("weight") + "bias"


def resolve_shape(config: Mapping[str, Any]) -> ModelShape:
    """The shape that the content of a config.json stands for.

    Raises `WeightsError` where transformers has no class for it (remote code is never run), where its values contradict
    each other, and for models of more than language.
    """
    settings = text_config(config)
    try:
        shape = _shape(settings)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise WeightsError(
            "config.json holds values of other types", found=" ".join(str(error).split())[:300], expected="numbers"
        ) from error
    numbers = {**vars(shape), **(shape.rope_scaling or {})}
    wide = {name: value for name, value in numbers.items() if isinstance(value, float) and abs(value) > _LARGEST}
    if wide:
        found = ", ".join(f"{name} {value:g}" for name, value in wide.items())
        raise WeightsError(
            "config.json holds numbers out of float32's range", found=found, expected=f"up to {_LARGEST:.2g}"
        )
    return shape


def _shape(settings: Any) -> ModelShape:
    kind = str(settings.model_type)
    heads = _first(settings, "num_attention_heads", "n_head", "num_heads") or 1
    hidden = int(_first(settings, "hidden_size", "n_embd", "d_model") or 0)
    rope = getattr(settings, "rope_parameters", None) or {}
    if isinstance(rope.get("full_attention"), Mapping):  # one for each kind of layer
        rope = rope["full_attention"]
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    scaled = scaling.get("rope_type", "default") != "default"
    per_logit = getattr(settings, "logits_scaling", None)
    flags = ("attention_bias", "mlp_bias", "qkv_bias", "use_bias")
    uses_window = getattr(settings, "use_sliding_window", True)
    return ModelShape(
        model_type=kind,
        family=FAMILIES.get(kind, USUAL),
        hidden_size=hidden,
        num_layers=int(_first(settings, "num_hidden_layers", "n_layer", "num_layers") or 0),
        num_heads=int(heads),
        num_key_value_heads=int(_first(settings, "num_key_value_heads") or heads),
        head_dim=int(_first(settings, "head_dim") or hidden // int(heads)),
        intermediate_size=_first(settings, "intermediate_size", "n_inner", "ffn_dim"),
        vocabulary_size=int(settings.vocab_size),
        context_length=int(_first(settings, "max_position_embeddings", "n_positions", "max_sequence_length") or 0),
        tied=bool(getattr(settings, "tie_word_embeddings", False)),
        norm_eps=float(_first(settings, "rms_norm_eps", "layer_norm_eps", "layernorm_epsilon") or 1e-5),
        rope_theta=float(rope.get("rope_theta") or 10000.0),
        rope_scaling=scaling if scaled else None,
        partial_rotary=float(rope.get("partial_rotary_factor") or 1.0),
        biases=any(getattr(settings, name, False) for name in flags)
        or kind in ("qwen2", "phi", "starcoder2", "gpt_neox", "opt", "bloom", "gpt2"),
        sliding_window=getattr(settings, "sliding_window", None) if uses_window else None,
        logit_softcap=getattr(settings, "final_logit_softcapping", None),
        logit_scale=float(_first(settings, "logit_scale", "lm_head_multiplier") or 1.0) / float(per_logit or 1.0),
    )


def refuse_running_text(model: str, config: Mapping[str, Any], what: str) -> list[UserError]:
    """What speaks against having the model called `model` read text that is no prompt, for `what`."""
    if not FAMILIES.get(str(config.get("model_type")), USUAL).prompts_only:
        return []
    return [
        WeightsError(
            f"{model} reads prompts and their answers only, so {what} has no meaning for it",
            found=f"model_type {config['model_type']}, whose positions and mask follow from where a prompt ends",
            expected="conversations, for yangtuo sft, chat, predict, serve, and evaluate --suite ner or promptcblue",
        )
    ]


def text_config(config: Mapping[str, Any]) -> Any:
    """transformers' config object for the content of a config.json; raises as `resolve_shape`."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    models.register_configs()
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise WeightsError(
            "transformers knows no such architecture",
            found=f"model_type {kind!r}"
            + (", with code of its own, which is never run" if config.get("auto_map") else ""),
            expected="a model_type of transformers, such as llama, mistral, qwen2, gemma or phi",
        )
    values = {key: value for key, value in config.items() if key not in ("model_type", "auto_map")}
    pad, num_rows = values.get("pad_token_id"), values.get("vocab_size")
    if isinstance(pad, int) and not 0 <= pad < (num_rows if isinstance(num_rows, int) else math.inf):
        values.pop("pad_token_id")  # -1 in LLaMA's first conversions; others name a token that has no row
    try:
        settings = AutoConfig.for_model(kind, **values)
    except (
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
        RecursionError,
        ArithmeticError,
        StrictDataclassError,
    ) as error:
        raise WeightsError(
            "config.json contradicts itself", found=" ".join(str(error).split())[:300], expected=f"a config of {kind}"
        ) from error
    if settings.get_text_config() is not settings:
        raise WeightsError(
            f"{kind} reads more than text, and only its language part could be adapted",
            found=f"a {kind} model with a text_config",
            expected="a language model; save the text part of this one with transformers on its own",
        )
    return settings


def _first(settings: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(settings, name, None)) is not None), None)
