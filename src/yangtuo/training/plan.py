"""What a run is going to be, said before its first step: how much learns, how many tokens, how much memory.

The memory figure is an estimate, in the open: weights, gradients and moments are counted, activations follow from the
shape of a Llama layer, and one factor, measured on a CPU (docs/design/040-training.md), stands for what allocators
keep. This module does not depend on data or the Trainer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from yangtuo.training import attention, loss, rates
from yangtuo.training.adapter import TrainableCount, count_trainable, is_embedding, is_new_rows, unreached
from yangtuo.training.held_out import Measure
from yangtuo.training.settings import Settings, compute_dtype

# Values kept for backward, per token and layer, in units of the hidden size (float32 ones of the norms count twice), of
# the intermediate size, and of LoRA's rank.
_KEPT_HIDDEN, _KEPT_INTERMEDIATE, _KEPT_RANK = 10, 4, 7
_CAUSAL_SHARE = 0.56  # of the square of probabilities that our attention on a CPU keeps
_HELD = 1.35  # bytes held for each that is in use: freed pieces that do not fit again, gradients passing through
_NF4_BYTES = 0.52  # a weight of a linear layer in 4 bits, with its share of the scales
_PROCESS = 550_000_000  # the interpreter and its libraries; a GPU's context is about as large


@dataclass(frozen=True)
class Plan:
    """The figures of a run, before it begins."""

    trainable: TrainableCount
    chosen: str
    """What is trained and in which arithmetic, in words."""
    rates: str
    """Peak learning rates, in words."""
    unreached: dict[str, int]
    """Matrices that LoRA does not reach, see `adapter.unreached`."""
    steps: int
    tokens: int
    weights: int
    """Bytes of all parameters as they stand."""
    learning: int
    """Bytes of gradients and of AdamW's two moments."""
    activations: int
    """Bytes kept for backward in one forward pass and held in the loss, estimated."""

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The plan in words."""
        counted = self.trainable
        share = (counted.lora + counted.embeddings) / counted.total
        memory = _PROCESS + self.weights + self.learning + self.activations
        learns = (
            f"{counted.total:,} parameters, all of the model"
            if share == 1
            else f"{counted.lora:,} parameters in LoRA matrices, {counted.embeddings:,} in embedding and head "
            f"({share:.1%} of {counted.total:,})"
        )
        frozen = ", ".join(self.unreached)
        return [
            f"trains: {self.chosen}",
            *(
                [f"frozen, for LoRA does not reach it: {frozen} ({sum(self.unreached.values()):,} parameters)"]
                if frozen
                else []
            ),
            self.rates,
            f"learns: {learns}",
            f"sees: {self.tokens:,} tokens in {self.steps:,} steps",
            f"needs: about {memory / 1e9:.1f} GB a process ({self.weights / 1e9:.1f} weights, "
            f"{self.learning / 1e9:.1f} gradients and moments, {self.activations / 1e9:.1f} activations, "
            f"{_PROCESS / 1e9:.1f} the process itself)",
        ]


def measuring(measures: Sequence[Measure], eval_every: int, num_steps: int) -> list[str]:
    """What held-out measurements cost, in words."""
    tokens = sum(inputs["input_ids"].numel() for measure in measures for inputs, _ in measure.batches)
    times = 1 + math.ceil(num_steps / eval_every)
    return [f"measures: {tokens:,} held-out tokens {times} times, every {eval_every:,} steps"] if tokens else []


def _chosen(model: Any, settings: Settings) -> str:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    rows = [name for name in names if is_embedding(name)]
    mode = "frozen" if not rows else "new rows" if is_new_rows(rows[0]) else "in full"
    shapes = getattr(model, "peft_config", {}).values()
    kinds = {"use_dora": "DoRA", "use_rslora": "rsLoRA"}
    what = "the whole model"
    for shape in shapes:
        kind = next((kind for name, kind in kinds.items() if getattr(shape, name)), "LoRA")
        what = f"{kind} of rank {shape.r}; embedding and head: {mode}"
    dtype = str(compute_dtype(settings.dtype)).removeprefix("torch.")
    stored = ", frozen weights in 4 bits" if settings.dtype == "nf4" else ""
    if settings.kl_coef:
        what += f"; held to the model as it was in its old language, by KL divergence times {settings.kl_coef:g}"
    return f"{what}; arithmetic in {dtype}{stored}; attention: {model.config._attn_implementation}"


def plan_run(model: Any, settings: Settings, num_blocks: int, block_size: int) -> Plan:
    """The plan of a run over `num_blocks` blocks, by the model as it stands."""
    num_steps = settings.num_steps(num_blocks)
    made = make_plan(
        model,
        model.config,
        num_steps,
        num_steps * settings.batch_size * block_size,
        settings.blocks_a_pass() * block_size,
        block_size=block_size,
        layers_again=settings.gradient_checkpointing,
    )
    groups = rates.parameter_groups(
        model,
        settings.learning_rate,
        settings.embedding_learning_rate,
        fresh=settings.fresh_rows,
        num_steps=num_steps,
    )
    weights = made.weights
    if settings.dtype == "nf4" and next(model.parameters()).is_meta:
        layers = [module.weight for name, module in model.named_modules() if name.endswith("_layer")]
        weights -= round(sum(weight.numel() * (weight.element_size() - _NF4_BYTES) for weight in layers))
    return replace(made, chosen=_chosen(model, settings), rates=rates.describe(groups), weights=weights)


def make_plan(
    model: nn.Module,
    config: PretrainedConfig,
    steps: int,
    tokens: int,
    tokens_a_pass: int,
    *,
    block_size: int,
    layers_again: bool,
) -> Plan:
    """The plan of `steps` optimizer steps over `tokens` tokens, `tokens_a_pass` of them in one forward pass.

    `layers_again`: gradient checkpointing is on, and a layer keeps little more than its input.
    """
    trainable = count_trainable(model)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    width = min(
        max(parameter.element_size(), 2) for parameter in model.parameters()
    )  # 4-bit weights compute in 2 bytes
    rank = next((config.r for config in getattr(model, "peft_config", {}).values()), 0)
    layer = _KEPT_HIDDEN * config.hidden_size + _KEPT_INTERMEDIATE * config.intermediate_size + _KEPT_RANK * rank
    if not torch.cuda.is_available() and block_size <= attention.LONGEST:
        layer += round(_CAUSAL_SHARE * config.num_attention_heads * block_size)
    num_layers = config.num_hidden_layers
    kept = tokens_a_pass * (num_layers * config.hidden_size + layer if layers_again else num_layers * layer)
    in_loss = config.vocab_size * (config.hidden_size + loss.positions_at_once(tokens_a_pass, config.vocab_size))
    return Plan(
        trainable=trainable,
        chosen="",
        rates="",
        unreached=unreached(model),
        steps=steps,
        tokens=tokens,
        weights=weights,
        learning=12 * (trainable.lora + trainable.embeddings),
        activations=round(_HELD * width * (kept + in_loss)),
    )
