"""What a run is going to be, said before its first step: how much learns, how many tokens, how much memory.

The memory figure is an estimate, in the open: weights, gradients and moments are counted, activations follow from the
shape of a Llama layer, and one factor, measured on a CPU (docs/design/040-training.md), stands for what allocators
keep. This module does not depend on data or the Trainer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig

from yangtuo.training import attention, loss
from yangtuo.training.adapter import TrainableCount, count_trainable
from yangtuo.training.settings import Settings

# Values kept for backward, per token and layer, in units of the hidden size (float32 ones of the norms count twice), of
# the intermediate size, and of LoRA's rank.
_KEPT_HIDDEN, _KEPT_INTERMEDIATE, _KEPT_RANK = 10, 4, 7
_CAUSAL_SHARE = 0.56  # of the square of probabilities that our attention on a CPU keeps
_HELD = 1.35  # bytes held for each that is in use: freed pieces that do not fit again, gradients passing through
_PROCESS = 550_000_000  # the interpreter and its libraries; a GPU's context is about as large


@dataclass(frozen=True)
class Plan:
    """The figures of a run, before it begins."""

    trainable: TrainableCount
    steps: int
    tokens: int
    weights: int
    """Bytes of all parameters as they stand."""
    learning: int
    """Bytes of gradients and of AdamW's two moments."""
    activations: int
    """Bytes kept for backward in one forward pass and held in the loss, estimated."""

    def lines(self) -> list[str]:
        """The plan in words."""
        counted = self.trainable
        share = (counted.lora + counted.embeddings) / counted.total
        memory = _PROCESS + self.weights + self.learning + self.activations
        return [
            f"learns: {counted.lora:,} parameters in LoRA matrices, {counted.embeddings:,} in embedding and head "
            f"({share:.1%} of {counted.total:,})",
            f"sees: {self.tokens:,} tokens in {self.steps:,} steps",
            f"needs: about {memory / 1e9:.1f} GB a process ({self.weights / 1e9:.1f} weights, "
            f"{self.learning / 1e9:.1f} gradients and moments, {self.activations / 1e9:.1f} activations, "
            f"{_PROCESS / 1e9:.1f} the process itself)",
        ]


def plan_run(model: nn.Module, settings: Settings, num_blocks: int, block_size: int) -> Plan:
    """The plan of a run over `num_blocks` blocks, by the model as it stands."""
    num_steps = settings.num_steps(num_blocks)
    return make_plan(
        model,
        model.config,  # type: ignore[arg-type]
        num_steps,
        num_steps * settings.batch_size * block_size,
        settings.blocks_a_pass() * block_size,
        block_size=block_size,
        layers_again=settings.gradient_checkpointing,
    )


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
        steps=steps,
        tokens=tokens,
        weights=weights,
        learning=12 * (trainable.lora + trainable.embeddings),
        activations=round(_HELD * width * (kept + in_loss)),
    )
