"""ChatGLM-6B's arithmetic, under the published tensor names, as a transformers model.

Unlike Llama: the residual carries the *normalised* value times alpha; q, k and v lie together head by head; rotary
positions have two channels, one for each half of a head; the prompt sees itself whole (see `layout`).
Shapes: B rows, S tokens, H hidden size, A heads, D size of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from yangtuo.models.chatglm.config import ChatGLMConfig
from yangtuo.models.chatglm.layout import make_layout

_ALPHA = math.sqrt(2 * 28)
"""Of every model: the published code never tells its layers how many they are, and they assume 28."""
_ROTARY_BASE = 10000.0
_EMBEDDING, _HEAD = "transformer.word_embeddings.weight", "lm_head.weight"


def rotary_tables(positions: Tensor, head_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, 1, S, D) for `positions` (B, 2, S): the first half of a head by channel 0, then channel 1.

    The frequencies are those of float16, in which the model was made; float16 also rounds the angles.
    """
    size = head_size // 2
    exponents = torch.arange(0, size, 2, device=positions.device, dtype=torch.float32) / size
    frequencies = (1.0 / _ROTARY_BASE**exponents).half()
    if dtype == torch.float16:
        angles = (positions.half()[..., None] * frequencies).float()
    else:
        angles = positions.float()[..., None] * frequencies.float()
    angles = torch.cat([angles, angles], dim=-1)  # (B, 2, S, D / 2)
    angles = torch.cat([angles[:, 0], angles[:, 1]], dim=-1)[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotates `states` (B, A, S, D): within each half of a head, element i together with the one a quarter on."""
    halves = states.unflatten(-1, (2, -1))
    first, second = halves.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1).flatten(-2)
    return states * cosines + turned * sines


def _eager_attention(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    scores = (query @ key.transpose(2, 3)).float() * scaling
    weights = scores.masked_fill(~attention_mask, -torch.inf).softmax(dim=-1).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


class ChatGLMAttention(nn.Module):
    """Attention over all visible tokens; its one projection holds q, k and v of each head in turn."""

    is_causal = False  # the mask says all

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, states: Tensor, visible: Tensor, tables: tuple[Tensor, Tensor], past_key_values: Cache | None
    ) -> tuple[Tensor, Tensor | None]:
        """Mixes `states` (B, S, H); returns them and the attention weights, where the implementation gives any."""
        heads = self.query_key_value(states).unflatten(-1, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
        query, key, value = _rotate(heads[0], *tables), _rotate(heads[1], *tables), heads[2]
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, _eager_attention
        )
        scaling = query.shape[-1] ** -0.5
        mixed, weights = attend(self, query, key, value, visible, dropout=0.0, scaling=scaling)
        return self.dense(mixed.flatten(2)), weights


class ChatGLMMLP(nn.Module):
    """Two layers with GELU in its tanh form between them."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        assert config.inner_hidden_size is not None
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        """`states` (B, S, H) to the same shape."""
        result: Tensor = self.dense_4h_to_h(functional.gelu(self.dense_h_to_4h(states), approximate="tanh"))
        return result


class ChatGLMBlock(GradientCheckpointingLayer):
    """One layer. What goes past attention and MLP is their normalised input, times alpha."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = ChatGLMAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = ChatGLMMLP(config)

    def forward(
        self,
        states: Tensor,
        visible: Tensor,
        tables: tuple[Tensor, Tensor],
        past_key_values: Cache | None = None,
    ) -> Tensor:
        """`states` (B, S, H) to the same shape."""
        normalised = self.input_layernorm(states)
        states = _ALPHA * normalised + self.attention(normalised, visible, tables, past_key_values)[0]
        normalised = self.post_attention_layernorm(states)
        result: Tensor = _ALPHA * normalised + self.mlp(normalised)
        return result


class ChatGLMPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of the architecture."""

    config: ChatGLMConfig
    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ChatGLMBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _input_embed_layer = "word_embeddings"
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]
    _can_record_outputs = {"hidden_states": ChatGLMBlock, "attentions": ChatGLMAttention}


class ChatGLMModel(ChatGLMPreTrainedModel):
    """The layers between the embedding and the head."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([ChatGLMBlock(config, index) for index in range(config.num_layers)])
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of `input_ids` (B, S).

        Positions and mask come from the ids. `attention_mask` (B, S) marks padding with 0; `position_ids` (B, S)
        restart at 0 with each document of a packed row. Ready-made ones are taken as they are: `attention_mask`
        (B, 1, S, K), True to attend, with `position_ids` (B, 2, S); a cache that is not empty, and embeddings without
        ids, need them.
        """
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if attention_mask is None or attention_mask.ndim == 2 or position_ids is None or position_ids.ndim == 2:
            if input_ids is None or (past_key_values is not None and past_key_values.get_seq_length()):
                raise ValueError(
                    "ChatGLM works positions and mask out from all ids of a row; where they are not there, give "
                    "attention_mask (batch, 1, new, all) and position_ids (batch, 2, new)"
                )
            layout = make_layout(self.config, input_ids, attention_mask, position_ids)
            attention_mask, position_ids = layout.visible(input_ids.shape[1]), layout.positions
        states = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        size = self.config.hidden_size // self.config.num_attention_heads
        tables = rotary_tables(position_ids, size, states.dtype)
        for layer in self.layers:
            states = layer(states, attention_mask, tables, past_key_values=past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=self.final_layernorm(states), past_key_values=past_key_values)


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel, GenerationMixin):
    """The causal language model, under the name that published configs give it; its head is the embedding."""

    _tied_weights_keys = {_HEAD: _EMBEDDING}

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """Ties the head to the embedding, also where a file holds another head: the original never uses it."""
        if missing_keys is not None and _EMBEDDING not in missing_keys and self.config.tie_word_embeddings:
            missing_keys.add(_HEAD)
        super().tie_weights(missing_keys, recompute_mapping)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, S, vocabulary), of the last `logits_to_keep` tokens where that is not 0, and the loss of `labels`.

        The other arguments are those of `ChatGLMModel.forward`; `labels` are the ids, -100 where nothing is learned.
        """
        outputs = self.transformer(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **options,
        )
        logits = self.lm_head(outputs.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **options)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> dict[str, Any]:
        """What one step of `generate` feeds: positions and mask of the new tokens, from all ids so far."""
        parent: Any = super()
        inputs: dict[str, Any] = parent.prepare_inputs_for_generation(
            input_ids, attention_mask=attention_mask, **options
        )
        num_new = inputs["input_ids"].shape[1]
        inputs["attention_mask"], inputs["position_ids"] = self.place_tokens(input_ids, attention_mask, num_new)
        return inputs

    def place_tokens(self, input_ids: Tensor, attention_mask: Tensor | None, num_new: int) -> tuple[Tensor, Tensor]:
        """`attention_mask` (B, 1, N, S) and `position_ids` (B, 2, N) of the last N tokens of rows (B, S).

        A step with a cache needs them: they follow from all ids of a row, of which it sees the new ones only.
        """
        layout = make_layout(self.config, input_ids, attention_mask, None)
        return layout.visible(num_new), layout.positions[..., -num_new:]
