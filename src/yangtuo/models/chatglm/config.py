"""The shape of a ChatGLM-6B, under the keys of the published config.json.

Three later families share its `model_type`; they are other architectures and are refused here by name.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from yangtuo.errors import WeightsError

_BEGIN_ID = 130004
_LATER = ("multi_query_attention", "ffn_hidden_size", "padded_vocab_size", "rmsnorm")


class ChatGLMConfig(PreTrainedConfig):
    """Config of ChatGLM-6B (v1); raises `WeightsError` for what shares its name but not its arithmetic."""

    model_type = "chatglm"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "num_hidden_layers": "num_layers",
        "intermediate_size": "inner_hidden_size",
        "max_position_embeddings": "max_sequence_length",
    }

    vocab_size: int = 130528
    hidden_size: int = 4096
    inner_hidden_size: int | None = None
    num_layers: int = 28
    num_attention_heads: int = 32
    layernorm_epsilon: float = 1e-5
    max_sequence_length: int = 2048
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = _BEGIN_ID
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    mask_token_id: int | None = None
    gmask_token_id: int | None = None
    position_encoding_2d: bool = True
    quantization_bit: int = 0
    pre_seq_len: int | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Fills in what the first published configs leave out: all special ids stand at fixed places beside `<sop>`."""
        _refuse_others(self, kwargs)
        begin = _BEGIN_ID if self.bos_token_id is None else self.bos_token_id
        self.bos_token_id = begin
        self.eos_token_id = begin + 1 if self.eos_token_id is None else self.eos_token_id
        self.mask_token_id = begin - 4 if self.mask_token_id is None else self.mask_token_id
        self.gmask_token_id = begin - 3 if self.gmask_token_id is None else self.gmask_token_id
        self.pad_token_id = 3 + max(0, begin - _BEGIN_ID) if self.pad_token_id is None else self.pad_token_id
        self.inner_hidden_size = 4 * self.hidden_size if self.inner_hidden_size is None else self.inner_hidden_size
        super().__post_init__(**kwargs)


def _refuse_others(config: ChatGLMConfig, others: dict[str, Any]) -> None:
    later = [key for key in _LATER if key in others]
    if later:
        raise WeightsError(
            "this is a ChatGLM2, ChatGLM3 or GLM-4 under the name chatglm, another architecture than ChatGLM-6B",
            found=", ".join(later) + " in config.json",
            expected="ChatGLM-6B (v1); of GLM-4 the directory that transformers knows, such as glm-4-9b-chat-hf",
        )
    special = {
        "quantization_bit": config.quantization_bit,
        "pre_seq_len": config.pre_seq_len,
        "position_encoding_2d": not config.position_encoding_2d,
    }
    if any(special.values()):
        raise WeightsError(
            "this ChatGLM-6B is of a kind that cannot be computed here",
            found=", ".join(f"{name} {getattr(config, name)}" for name, value in special.items() if value),
            expected="whole weights, not quantised, without a trained prefix, with two-dimensional positions",
        )
