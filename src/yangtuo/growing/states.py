"""The states that a model reaches, its weights read as their turn comes, so that they never stand in memory whole.

On a GPU that has the room they do: read once, not once in every pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import cpu_offload, init_empty_weights
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from yangtuo import console
from yangtuo.weights.checkpoint import Tensors
from yangtuo.weights.shape import FAMILIES, USUAL, resolve_shape, text_config

_AT_ONCE = {"cpu": 1 << 12, "cuda": 1 << 14}  # tokens in a forward pass: for each, all weights are read
_LOWER = 0.25  # of all layers
_ROWS, _POSITIONS = 8192, 512  # of a head, and of states, whose logits stand in memory at once
_SMALL = 512  # hidden size up to which float32 costs nothing that matters
_BESIDE = 4 << 30  # bytes of a GPU's memory that are left to a pass where the weights stand in it whole


class _Weights(Mapping[str, Tensor]):
    """Tensors as a mapping, for accelerate."""

    def __init__(self, tensors: Tensors, prefix: str) -> None:
        self._tensors, self._prefix = tensors, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors.get(self._prefix + name)

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._prefix) for name in self._tensors.names() if name.startswith(self._prefix))

    def __len__(self) -> int:
        return len(list(iter(self)))


class LowerLayers:
    """The lower layers of a model, frozen and in memory, as a function of what stands for the embedded ids."""

    def __init__(self, config: Mapping[str, Any], tensors: Tensors) -> None:
        """Loads `num_lower(config)` layers; `obstacle` says whether that can be done."""
        count = num_lower(config)
        shallow = {**config, "num_hidden_layers": count}
        if isinstance(config.get("layer_types"), list):
            shallow["layer_types"] = config["layer_types"][:count]
        self.dtype, self.device = _arithmetic(config, tensors)
        backbone, prefix = _empty_backbone(shallow, self.dtype)
        self._scale = _embedding_scale(backbone)
        weights = _Weights(tensors, prefix)
        # What the next layer would be given: its own norm damps the few directions that are far larger than all others.
        next_norm = f"layers.{count}.input_layernorm.weight"
        names = {
            name: next_norm if name == "norm.weight" and next_norm in weights else name for name in _names(backbone)
        }
        state = {name: weights[source].to(self.dtype) for name, source in names.items() if not name.startswith("embed")}
        backbone.load_state_dict(state, strict=False, assign=True)
        backbone.embed_tokens = None
        self._backbone = backbone.to(self.device).eval().requires_grad_(False)

    def __call__(self, embedded: Tensor) -> Tensor:
        """Normed states (windows, length, hidden) in float32, for `embedded` of the same shape; it keeps gradients."""
        inputs = embedded.to(self.device, self.dtype) * self._scale
        states: Tensor = self._backbone(inputs_embeds=inputs, use_cache=False).last_hidden_state
        return states.float()


def num_lower(config: Mapping[str, Any]) -> int:
    """How many layers put words together from their pieces: a quarter of them, and one at least."""
    return max(1, round(resolve_shape(config).num_layers * _LOWER))


def obstacle(config: Mapping[str, Any], tensors: Tensors) -> str | None:
    """Why a model's states, or the logits that its head makes of them, cannot be computed here; None where they can."""
    if config.get("model_type") not in CONFIG_MAPPING:
        return f"transformers knows no {config.get('model_type')}"
    shape = resolve_shape(config)
    if shape.logit_softcap is not None:
        return f"{shape.model_type} squashes its logits (final_logit_softcapping {shape.logit_softcap:g})"
    if shape.head_bias in tensors.names():
        return f"the head of this {shape.model_type} has a bias"
    backbone, prefix = _empty_backbone(config, torch.float32)
    missing = {shape.embedding, *(prefix + name for name in _names(backbone))} - set(tensors.names())
    return f"it has no tensor {min(missing)}, as a {shape.model_type} of transformers would" if missing else None


def _embedding(config: Mapping[str, Any]) -> str:
    return FAMILIES.get(config["model_type"], USUAL).embedding


def _names(backbone: Any) -> list[str]:
    return [name for name, _ in backbone.named_parameters()]


def _embedding_scale(backbone: Any) -> float:
    """What an embedding multiplies its rows by before anybody sees them (Gemma)."""
    return float(getattr(backbone.get_input_embeddings(), "embed_scale", 1.0))


def _empty_backbone(config: Mapping[str, Any], dtype: torch.dtype) -> tuple[Any, str]:
    """A model below its head, without values, and what its parameters' names begin with."""
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(text_config(config), dtype=dtype)  # type: ignore[no-untyped-call]
    return getattr(model, model.base_model_prefix), f"{model.base_model_prefix}."


def fastest() -> tuple[torch.dtype, torch.device]:
    """A GPU where there is one, and 16 bits where it, or the CPU, computes in them."""
    if torch.cuda.is_available():
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float16, torch.device("cuda")
    has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32, torch.device("cpu")


def _arithmetic(config: Mapping[str, Any], tensors: Tensors) -> tuple[torch.dtype, torch.device]:
    """Number format and device of passes. Small models are read exactly."""
    dtype, device = fastest()
    embedding = _embedding(config)
    is_small = tensors.shape(embedding)[1] < _SMALL and tensors.dtype(embedding) == torch.float32
    return (torch.float32 if is_small else dtype), device


def last_states(config: Mapping[str, Any], tensors: Tensors, windows: Tensor) -> Tensor:
    """What the head's rows meet at each id of `windows` (num_windows, window): (num_windows, window, hidden).

    `config` is the content of config.json; `tensors` has a row for each id. Computed on a GPU where there is one. The
    product with a row is its logit: states are scaled where the model scales logits (Cohere, Granite).
    """
    dtype, device = _arithmetic(config, tensors)
    backbone, prefix = _empty_backbone(config, dtype)
    weights = _Weights(tensors, prefix)
    embedding = tensors.get(_embedding(config))
    scales = _embedding_scale(backbone), resolve_shape(config).logit_scale
    _place(backbone.eval(), weights, dtype, device)
    states = torch.empty(*windows.shape, embedding.shape[1], dtype=dtype)
    at_once = max(1, _AT_ONCE[device.type] // windows.shape[1])
    with torch.no_grad(), console.progress("reading text", len(windows), "windows") as bar:
        for part, filled in zip(torch.split(windows, at_once), torch.split(states, at_once), strict=True):
            inputs = embedding[part].to(device, dtype) * scales[0]
            filled.copy_(backbone(inputs_embeds=inputs, use_cache=False).last_hidden_state * scales[1])
            bar.advance(len(part))
    return states


def _place(backbone: Any, weights: _Weights, dtype: torch.dtype, device: torch.device) -> None:
    """Gives an empty backbone its weights: all of them now where they have room, elsewhere each for its turn."""
    num_bytes = sum(parameter.numel() for parameter in backbone.parameters()) * dtype.itemsize
    if not _has_room(num_bytes, device):
        cpu_offload(backbone, device, state_dict=weights)
        return
    backbone.set_input_embeddings(None)  # a pass is given rows, of which there may be more than the config says
    state = {name: weights[name].to(device, dtype) for name in _names(backbone)}
    backbone.load_state_dict(state, strict=False, assign=True)
    backbone.to(device)


def _has_room(num_bytes: int, device: torch.device) -> bool:
    """Whether so much stands on a GPU beside a pass; a CPU's memory is for the states."""
    if device.type != "cuda":
        return False
    torch.cuda.empty_cache()  # what was freed would count as taken
    return num_bytes + _BESIDE < torch.cuda.mem_get_info(device)[0]


def log_sums(rows: Tensor, states: Tensor, where: Tensor) -> Tensor:
    """Log-sum-exp of the logits of `rows` (n, hidden) in `states` (positions, hidden) at the places `where` (m,).

    Float32 of shape (m,); computed on a GPU where there is one, in the states' number format.
    """
    _, device = fastest()
    sums = torch.full((len(where),), -torch.inf)
    for some in torch.split(rows, _ROWS):
        columns = some.to(device, states.dtype).T
        # Filled in place: results by the thousand, kept between large intermediate ones, took gigabytes of memory.
        for part, filled in zip(torch.split(where, _POSITIONS), torch.split(sums, _POSITIONS), strict=True):
            logits = states[part].to(device) @ columns
            torch.logaddexp(filled, logits.float().logsumexp(dim=1).cpu(), out=filled)
    return sums
