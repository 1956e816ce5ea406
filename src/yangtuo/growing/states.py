"""The states that a model reaches, its weights read as their turn comes, so that they never stand in memory whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import cpu_offload, init_empty_weights
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from yangtuo import console
from yangtuo.weights.checkpoint import Tensors
from yangtuo.weights.shape import FAMILIES, USUAL

_AT_ONCE = 16  # windows in a forward pass


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


def last_states(config: Mapping[str, Any], tensors: Tensors, windows: Tensor) -> Tensor | None:
    """What the head is given at each id of `windows` (num_windows, window): (num_windows, window, hidden) on the CPU.

    `config` is the content of config.json; `tensors` has a row for each id. Computed on a GPU where there is one; in
    float32 if the model is stored so, else in bfloat16, or in float16 on a GPU without it. None where transformers does
    not know the architecture, or names its parameters otherwise than the tensors are named.
    """
    if config.get("model_type") not in CONFIG_MAPPING:
        return None
    has_gpu = torch.cuda.is_available()
    half = torch.float16 if has_gpu and not torch.cuda.is_bf16_supported(including_emulation=False) else torch.bfloat16
    embedding = FAMILIES.get(config["model_type"], USUAL).embedding
    if embedding not in tensors.names():
        return None
    dtype = torch.float32 if tensors.dtype(embedding) == torch.float32 else half
    with init_empty_weights(include_buffers=False):
        settings = AutoConfig.for_model(**config)
        model: Any = AutoModelForCausalLM.from_config(settings, dtype=dtype)  # type: ignore[no-untyped-call]
    backbone = getattr(model, model.base_model_prefix)
    weights = _Weights(tensors, f"{model.base_model_prefix}.")
    if not set(dict(backbone.named_parameters())) <= set(weights):
        return None
    device = torch.device("cuda" if has_gpu else "cpu")
    embedded = tensors.get(embedding)[windows]
    cpu_offload(backbone.eval(), device, state_dict=weights)
    states = []
    with torch.no_grad(), console.progress("reading text", len(windows), "windows") as bar:
        for part in torch.split(embedded, _AT_ONCE):
            inputs = part.to(device, dtype)
            states.append(backbone(inputs_embeds=inputs, use_cache=False).last_hidden_state.to("cpu"))
            bar.advance(len(part))
    return torch.cat(states)
