"""What a run is going to be, said before its first step: how much learns, how many tokens, how much memory.

The memory figure is an estimate, in the open: weights, gradients and moments exactly, activations by a rule that holds
by formula, not measured. This module knows nothing of data or of the Trainer.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig

from yangtuo.training.adapter import TrainableCount, count_trainable

# Values kept for backward, per token and layer, in units of the hidden and of the intermediate size.
_KEPT_HIDDEN, _KEPT_INTERMEDIATE = 14, 5


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
    """Bytes kept for backward in one forward pass, estimated."""

    def lines(self) -> list[str]:
        """The plan in words."""
        counted = self.trainable
        share = (counted.lora + counted.embeddings) / counted.total
        memory = self.weights + self.learning + self.activations
        return [
            f"learns: {counted.lora:,} parameters in LoRA matrices, {counted.embeddings:,} in embedding and head "
            f"({share:.1%} of {counted.total:,})",
            f"sees: {self.tokens:,} tokens in {self.steps:,} steps",
            f"needs: about {memory / 1e9:.1f} GB a process ({self.weights / 1e9:.1f} weights, "
            f"{self.learning / 1e9:.1f} gradients and moments, {self.activations / 1e9:.1f} activations)",
        ]


def make_plan(
    model: nn.Module, config: PretrainedConfig, steps: int, tokens: int, tokens_a_pass: int, *, layers_again: bool
) -> Plan:
    """The plan of `steps` optimizer steps over `tokens` tokens, `tokens_a_pass` of them in one forward pass.

    `layers_again`: gradient checkpointing is on, and a layer keeps little more than its input.
    """
    trainable = count_trainable(model)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    width = min(parameter.element_size() for parameter in model.parameters())
    per_layer = _KEPT_HIDDEN * config.hidden_size + _KEPT_INTERMEDIATE * config.intermediate_size
    kept = tokens_a_pass * width * (2 * config.hidden_size if layers_again else per_layer)
    return Plan(
        trainable=trainable,
        steps=steps,
        tokens=tokens,
        weights=weights,
        learning=12 * (trainable.lora + trainable.embeddings),
        activations=config.num_hidden_layers * kept,
    )
