"""Which engine can load an adapter as it is, beside its base, and why another cannot.

Read from the adapter's settings and the names of its tensors, as the engines' sources check them.
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Any, Literal

from yangtuo.weights.adapter import CONFIG_FILE, read_config

EngineName = Literal["transformers", "vllm", "llama.cpp"]
ENGINES: tuple[EngineName, ...] = ("transformers", "vllm", "llama.cpp")


def reasons_to_merge(adapter: Path, base: Path | None = None) -> dict[EngineName, str | None]:
    """For each engine None where it loads the adapter unmerged, else the reason why it has to be merged before.

    Without the `base` that it will be put on, a grown vocabulary is not looked for.
    """
    if not (adapter / CONFIG_FILE).is_file():
        return dict.fromkeys(ENGINES, "it is no directory as PEFT writes it")
    config = read_config(adapter / CONFIG_FILE)
    grown = _grown(adapter, base) if base else None
    return {
        "transformers": grown,
        "vllm": grown or _beyond_pairs(config, "vLLM", allowed={"classifier", "score"}),
        "llama.cpp": grown or _beyond_pairs(config, "llama.cpp"),
    }


def _beyond_pairs(config: dict[str, Any], engine: str, allowed: Set[str] = frozenset()) -> str | None:
    """A reason where an adapter is more than low-rank pairs and copies of the `allowed` modules."""
    saved = [name for name in config.get("modules_to_save") or () if name not in allowed]
    if saved:
        return f"{engine} loads no trained copies of {', '.join(saved)}"
    if config.get("trainable_token_indices"):
        return f"{engine} loads no trained rows of the vocabulary"
    if config.get("use_dora"):
        return f"{engine} loads no DoRA"
    if config.get("bias", "none") != "none":
        return f"{engine} loads no trained biases"
    return None if config.get("peft_type", "LORA") == "LORA" else f"{engine} loads no {config['peft_type']}"


def _grown(adapter: Path, base: Path) -> str | None:
    """A reason where the adapter's vocabulary is larger than its base: then no engine could put it on."""
    from yangtuo.weights.adapter import Replace, open_adapter
    from yangtuo.weights.layouts import open_checkpoint

    rows = open_checkpoint(base).shape.vocabulary_size
    opened = open_adapter(adapter, str(adapter), adapter)
    for target, updates in opened.updates.items():
        for update in updates:
            shape = opened.tensors.shape(update.key) if isinstance(update, Replace) else ()
            if rows and len(shape) == 2 and shape[0] > rows and "embed" in target:
                return f"it brings {shape[0]:,} rows for a base of {rows:,}"
    return None
