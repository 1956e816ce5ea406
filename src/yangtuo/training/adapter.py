"""What of a model learns: LoRA on its linear layers, and embedding and head in full, in part or not; or all of it.

Everything is found in the model and written in PEFT's own format, so any tool that reads PEFT adapters reads these. A
model that learns whole is written as transformers writes it.
This module does not depend on data, on steps, or on where the model came from.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from yangtuo.errors import LineageError, TrainingError, WeightsError
from yangtuo.weights import loading

EmbeddingRows = Literal["full", "new", "frozen"]
Trained: TypeAlias = PeftModel | PreTrainedModel
"""What a run trains: an adapter on a model, or a model."""
_WEIGHTS = "adapter_model.safetensors"

TIED_BY_PEFT = ("embed_tokens.weight", "lm_head.weight")
"""Ends of names that PEFT looks for when it trains a tied embedding as one with its head."""


@dataclass(frozen=True, kw_only=True)
class AdapterShape:
    """What is trained: `new_rows` are the ids whose rows learn with embeddings "new"."""

    rank: int
    alpha: float
    embeddings: EmbeddingRows = "full"
    new_rows: Sequence[int] = ()
    further: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of `LoraConfig`, see `libraries`."""


@dataclass(frozen=True)
class TrainableCount:
    """Numbers of parameters: of LoRA matrices, of embedding and head, and of the whole model with them."""

    lora: int
    embeddings: int
    total: int


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Names (last components, sorted) of all linear layers of `model` but its head."""
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    names = {
        name.rpartition(".")[2] for name, module in model.named_modules() if _is_linear(module) and module is not head
    }
    assert names, "a language model without linear layers"
    return sorted(names)


def attach(model: PreTrainedModel, shape: AdapterShape) -> PeftModel:
    """Puts a fresh adapter on `model`; all its trainable tensors are float32.

    Raises `TrainingError` where only new rows shall learn and there are none.
    """
    embedding, head = _embedding_names(model)
    tied = head is None
    rows: dict[str, list[int]] | None = None
    if tied and shape.embeddings == "full" and not f"{embedding}.weight".endswith(TIED_BY_PEFT):
        raise TrainingError(
            "PEFT would train a copy of this tied embedding, and leave the head as it was",
            found=f"an embedding called {embedding} that is also the head",
            expected="LoRA alone",
            run="the same command with --embeddings frozen",
        )
    if shape.embeddings == "new":
        if not shape.new_rows:
            raise TrainingError(
                "only new rows shall be trained, but it is not known which rows are new",
                found="a model that `yangtuo expand` did not write",
                expected="a model with rows added by expand, or --embeddings full or frozen",
            )
        rows = {name: list(shape.new_rows) for name in (embedding, head) if name is not None}
    config = LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,  # PEFT only ever divides by it
        modules_to_save=[name for name in (embedding, head) if name] if shape.embeddings == "full" else None,
        trainable_token_indices=rows,
        ensure_weight_tying=tied and shape.embeddings == "full",
        task_type="CAUSAL_LM",
        bias="none",
        **{"target_modules": linear_layers(model), **shape.further},
    )
    with quiet_peft():
        adapted = get_peft_model(model, config)
    _settle(adapted)
    return adapted


def train_whole(model: PreTrainedModel) -> PreTrainedModel:
    """Lets all of `model` learn, in float32, in which it must have been loaded."""
    for parameter in model.parameters():
        assert parameter.dtype is torch.float32
        parameter.requires_grad = True
    return model


def inner(model: Any) -> PreTrainedModel:
    """The model without what PEFT has put around it."""
    own: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    return own


def write(model: Trained, state: dict[str, Tensor], directory: Path, dtype: torch.dtype) -> None:
    """Writes the trained tensors `state` into `directory`: as an adapter, read back to compare, or a model in `dtype`.

    Raises `TrainingError` where an adapter's file does not hold what it should.
    """
    if not isinstance(model, PeftModel):
        rounded = {id(tensor): tensor.to(dtype) for tensor in state.values()}  # tied matrices stay one tensor
        buffers = {name: value for name, value in model.state_dict().items() if name not in state}
        whole = buffers | {name: rounded[id(tensor)] for name, tensor in state.items()}
        model.save_pretrained(str(directory), state_dict=whole)
        return
    with quiet_peft():
        model.save_pretrained(str(directory), state_dict=state, save_embedding_layers=False)
        expected = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)  # an empty form that PEFT leaves
    require_written(directory / _WEIGHTS, expected)


def unreached(model: nn.Module) -> dict[str, int]:
    """Matrices that no adapter can stand on, for they are no linear layers, such as experts in one tensor.

    Name without the layer's number -> parameters. Those that learn in another way are none of them.
    """
    num_unreached: dict[str, int] = {}
    for name, module in inner(model).named_modules() if isinstance(model, PeftModel) else ():
        if isinstance(module, nn.Linear | nn.Embedding) or name.endswith((".base_layer", ".original_module")):
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1 and not parameter.requires_grad:
                kind = re.sub(r"^.*\.\d+\.", "", f"{name}.{key}")
                num_unreached[kind] = num_unreached.get(kind, 0) + parameter.numel()
    return num_unreached


def continue_from(model: PreTrainedModel, directory: Path) -> PeftModel:
    """Puts the adapter in `directory` on `model` and goes on training it; raises `LineageError` where it cannot fit."""
    try:
        with quiet_peft():
            adapted: PeftModel = loading.load_adapter(model, directory, is_trainable=True)
    except WeightsError as error:
        raise LineageError(
            f"the adapter {directory} does not fit the model",
            found=error.found or error.problem,
            expected="a whole adapter that was trained on this very model",
            run=f"yangtuo inspect {directory}",
        ) from error
    _settle(adapted)
    return adapted


def require_written(path: Path, expected: dict[str, Tensor]) -> None:
    """Raises `TrainingError` where the file does not hold the tensors that were to be written."""
    written = load_file(path)
    wrong = sorted(
        name
        for name in expected.keys() | written.keys()
        if name not in written or name not in expected or not torch.equal(written[name], expected[name].detach().cpu())
    )
    if wrong or not written:
        raise TrainingError(
            f"{path.name} does not hold what was trained",
            found=", ".join(wrong[:5]) or "no tensor",
            expected=f"{len(expected)} tensors, equal to those in memory",
        )


def count_trainable(model: nn.Module) -> TrainableCount:
    """Counts the parameters that learn, by group."""
    lora = embeddings = total = 0
    for name, parameter in model.named_parameters():
        size = getattr(parameter, "ds_numel", parameter.numel())
        total += size
        if parameter.requires_grad:
            if is_embedding(name):
                embeddings += size
            else:
                lora += size
    return TrainableCount(lora, embeddings, total)


def is_embedding(name: str) -> bool:
    """Whether the trainable parameter `name` belongs to embedding or head."""
    return "modules_to_save" in name or is_new_rows(name)


def is_new_rows(name: str) -> bool:
    """Whether the trainable parameter `name` holds chosen rows of embedding or head."""
    return "trainable_tokens" in name


def row_deviation(model: Trained, name: str) -> tuple[float, bool]:
    """The standard deviation within a column of the matrix whose rows the parameter `name` trains, averaged over the
    columns, and whether that matrix says what comes next: it is the head, or an embedding that is also the head.
    """
    base = inner(model)
    embedding, head = _embedding_names(base)
    is_embedding = f".{embedding}." in name
    module: Any = base.get_input_embeddings() if is_embedding else base.get_output_embeddings()  # type: ignore[no-untyped-call]
    return float(module.weight.detach().float().std(dim=0).mean()), not is_embedding or head is None


def _settle(model: PeftModel) -> None:
    for module in model.modules():
        # PEFT would cast every layer's input to float32 before autocast casts it back.
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False
    dtype = model.dtype
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)

    def narrow(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.to(dtype)

    # A float32 embedding would carry the whole residual stream in float32, which the base never did.
    model.get_input_embeddings().register_forward_hook(narrow)


def _embedding_names(model: PreTrainedModel) -> tuple[str, str | None]:
    """Last components of the names of embedding and head; None for a head that is tied to the embedding."""
    names = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
    embedding = model.get_input_embeddings()
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None or getattr(model.config, "tie_word_embeddings", False):
        return names[embedding], None
    return names[embedding], names[head]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)  # bitsandbytes' quantized layers are Linear too


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hides the deprecations that PEFT itself runs into; they say nothing to a user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        yield
