"""The one way in which transformers and PEFT open a directory: no code of a model's own, no place but the directory.

What they would let pass with a warning is an error here: tensors that are missing and would be drawn at random, that
are too many, of another shape, or half an adapter. Everything is looked at before memory is spent on it.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from yangtuo import models
from yangtuo.errors import FileError, UserError, WeightsError
from yangtuo.vocab.engines import library_refusals
from yangtuo.weights import adapter as adapters
from yangtuo.weights.checkpoint import CONFIG_FILE, read_config
from yangtuo.weights.reader import BUFFERS, open_tensors

# What the libraries raise on files that they cannot use; StrictDataclassError is that of transformers' config classes.
_REFUSALS = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, ImportError),
    *(AssertionError, MemoryError, SafetensorError, StrictDataclassError, pickle.UnpicklingError),
)


def load_config(directory: Path) -> PreTrainedConfig:
    """The config of a model directory as transformers reads it; raises `FileError` or `WeightsError`."""
    models.register()
    values = read_config(directory / CONFIG_FILE)
    if values.get("model_type") not in CONFIG_MAPPING:
        own = " with code of its own, which is never run" if values.get("auto_map") else ""
        raise WeightsError(
            f"{directory} is of an architecture that transformers does not have",
            found=f"model_type {values.get('model_type')!r}{own}",
            expected="a model_type of transformers, such as llama, mistral or qwen2",
        )
    with _refused(directory):
        config: PreTrainedConfig = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    return config


def load_model(directory: Path, *, dtype: torch.dtype | str, **options: Any) -> PreTrainedModel:
    """The causal language model in a directory, every parameter from its files.

    `options` go to transformers. Raises `FileError` where files are missing or point elsewhere and `WeightsError` where
    tensors do not fill the architecture, are too many or of other shapes.
    """
    config = load_config(directory)
    _check_files(directory, config)
    with _refused(directory):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            local_files_only=True,
            weights_only=True,
            output_loading_info=True,
            **options,
        )
    model, report = loaded
    _refuse_misfits(directory, report)
    assert isinstance(model, PreTrainedModel)
    return model


def empty_model(directory: Path, *, dtype: torch.dtype | str) -> PreTrainedModel:
    """The model of a directory's config, without its weights: for counting, on the meta device."""
    config = load_config(directory)
    with _refused(directory):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)  # type: ignore[no-untyped-call]
    assert isinstance(model, PreTrainedModel)
    return model


def load_adapter_config(directory: Path) -> Any:
    """The `PeftConfig` of an adapter whose files were looked at as `load_adapter` does."""
    from peft import PeftConfig

    adapters.open_adapter(directory, str(directory), directory)
    with _refused(directory):
        return PeftConfig.from_pretrained(str(directory), local_files_only=True)


def load_tokenizer(directory: Path) -> Any:
    """transformers' tokenizer of a directory."""
    models.register()
    with library_refusals(str(directory)):
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)


def load_adapter(model: Any, directory: Path, *, name: str = "default", is_trainable: bool = False) -> Any:
    """`model` with the LoRA adapter in `directory` on it, as `name`: a `PeftModel`.

    Raises as `yangtuo.weights.adapter.open_adapter`, and `WeightsError` where its tensors are not those that the model
    takes up.
    """
    from peft import PeftModel

    opened = adapters.open_adapter(directory, str(directory), directory)
    written = set(opened.tensors.names())
    with _refused(directory), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names in transformers, and what is checked below
        if isinstance(model, PeftModel):
            model.load_adapter(str(directory), adapter_name=name, is_trainable=is_trainable, local_files_only=True)
        else:
            model = PeftModel.from_pretrained(
                model, str(directory), adapter_name=name, is_trainable=is_trainable, local_files_only=True
            )
    _refuse_half(model, directory, name, written)
    return model


def _check_files(directory: Path, config: PreTrainedConfig) -> None:
    """What can be known before weights are loaded: whole files of this directory, as large as the config says."""
    if (directory / adapters.CONFIG_FILE).is_file():  # transformers would load the base that it names, from the hub too
        raise FileError(f"{directory} is an adapter, not a model", run=f"yangtuo inspect {directory}")
    with open_tensors(directory) as tensors:
        names = tensors.names()
        num_values = sum(math.prod(tensors.shape(name)) for name in names)
        whole = [name for name in names if tensors.dtype(name).is_floating_point or tensors.dtype(name) == torch.bool]
        first = tensors.files[0].suffix
    if first not in (".safetensors", ".bin"):
        raise FileError(f"{directory} is in a layout of its own", run=f"yangtuo convert --source {directory}")
    if getattr(config, "quantization_config", None):
        return
    text = config.get_text_config()
    layers = getattr(text, "num_hidden_layers", 0) or 0
    rows, width = getattr(text, "vocab_size", 0) or 0, getattr(text, "hidden_size", 0) or 0
    if layers > len(names) or rows * width > num_values:
        raise WeightsError(
            f"{directory} holds less than its config.json says",
            found=f"{len(names):,} tensors with {num_values:,} values",
            expected=f"{layers:,} layers, and an embedding of {rows:,} rows of {width:,}",
        )
    if odd := sorted(set(names) - set(whole)):
        odd = [name for name in odd if not BUFFERS.fullmatch(name)]
        if odd:
            raise WeightsError(
                f"{directory} holds weights that are whole numbers",
                found=", ".join(odd[:4]),
                expected="float32, float16 or bfloat16, or a quantization_config that says how to read them",
            )


def _refuse_misfits(directory: Path, report: Any) -> None:
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    mismatched = sorted(str(misfit) for misfit in report["mismatched_keys"])
    unexpected = [name for name in unexpected if not BUFFERS.fullmatch(name)]
    errors = [str(message) for message in report.get("error_msgs") or ()]
    differences = [
        f"{len(names):,} {what}: {', '.join(names[:4])}"
        for what, names in (
            ("missing", missing),
            ("too many", unexpected),
            ("of another shape", mismatched),
            ("not usable", errors),
        )
        if names
    ]
    if differences:
        raise WeightsError(
            f"{directory}: the tensors are not those of its config.json",
            found="; ".join(differences),
            expected="every tensor of the architecture, and no other",
            run=f"yangtuo inspect {directory}",
        )


def _refuse_half(model: Any, directory: Path, name: str, written: set[str]) -> None:
    from peft import get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        taken = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    inside = {_plain(key, name) for key in model.state_dict()}
    missing = sorted(taken - written)
    unexpected = sorted(key for key in written - taken if _plain(key, name) not in inside)
    if missing or unexpected:
        raise WeightsError(
            f"{directory} is not whole, or was made for another model",
            found=f"missing: {', '.join(missing[:4]) or 'none'}; of no use: {', '.join(unexpected[:4]) or 'none'}",
            expected=f"the {len(taken)} tensors that {adapters.CONFIG_FILE} promises",
            run=f"yangtuo inspect {directory}",
        )


def _plain(key: str, adapter: str) -> str:
    """A parameter's name without the wrappers that PEFT puts around it."""
    return re.sub(rf"\.(base_layer|original_module|modules_to_save(\.{re.escape(adapter)})?)(?=\.)", "", key)


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Whatever the libraries say against a directory is the user's to read, in a line."""
    try:
        yield
    except UserError:
        raise
    except _REFUSALS as error:
        raise WeightsError(
            f"{path} cannot be loaded",
            found=_in_a_line(error),
            expected="a whole directory as transformers or PEFT wrote it",
            run=f"yangtuo inspect {path}",
        ) from error


def _in_a_line(error: BaseException) -> str:
    lines: Sequence[str] = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0][:300]}"
