"""The model that a run trains: opened, checked against the tokens it will see, and finished as a directory.

It knows artifacts and tokenizers by their fingerprints only; it does not depend on how training goes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import PeftModel
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from yangtuo.artifacts.manifest import Artifact, grown_rows
from yangtuo.errors import LineageError, UserError, WeightsError
from yangtuo.training import adapter, attention, libraries, old_language, processes, rates
from yangtuo.training.loss import use_sliced_loss
from yangtuo.training.probe import choose_attention
from yangtuo.training.settings import Settings, compute_dtype
from yangtuo.vocab.directory import copy_tokenizer, read_directory
from yangtuo.vocab.encoding import Encoder
from yangtuo.weights import loading
from yangtuo.weights.checkpoint import CONFIG_FILE, read_json
from yangtuo.weights.layouts import open_checkpoint, summarize
from yangtuo.weights.shape import refuse_running_text, resolve_shape

_ADAPTER_CONFIG = "adapter_config.json"


def load_trained(
    model: Artifact, earlier: Artifact | None, stop_ids: Sequence[int], options: Mapping[str, Any]
) -> adapter.Trained:
    """The model as it is to be trained: whole, with a new adapter of the shape in `options`, or with the `earlier`."""
    torch.manual_seed(options["seed"])
    spread = options["sharding"] in ("zero3", "fsdp2") and processes.rank() > 0
    dtype = compute_dtype(options["dtype"]) if options["rank"] else torch.float32
    attention = choose_attention(loading.load_config(model.path), options["attention"])
    if spread:
        loaded = empty_base(model.path, dtype, attention)
    else:
        loaded = load_base(model.path, dtype, attention, quantized=options["dtype"] == "nf4")
    if not options["rank"]:
        return adapter.train_whole(loaded)
    if earlier is not None:
        return adapter.continue_from(loaded, earlier.path)
    return adapter.attach(loaded, _shape(model, stop_ids, options))


def meta_model(
    model: Artifact, earlier: Artifact | None, stop_ids: Sequence[int], options: Mapping[str, Any]
) -> adapter.Trained:
    """What `load_trained` gives, without a single value in its tensors: for counting before anything is loaded."""
    with torch.device("meta"):
        with torch.device("cpu"):  # an architecture that does not train right is refused before anything is read
            attention = choose_attention(loading.load_config(model.path), options["attention"])
        dtype = compute_dtype(options["dtype"]) if options["rank"] else torch.float32
        empty = loading.empty_model(model.path, dtype=dtype)
        empty.config._attn_implementation = attention
        if not options["rank"]:
            return adapter.train_whole(empty)
        if earlier is None:
            return adapter.attach(empty, _shape(model, stop_ids, options))
        shape = loading.load_adapter_config(earlier.path)
        shape.inference_mode = False
        with adapter.quiet_peft():
            return PeftModel(empty, shape)


def check_running_text(model: Artifact, what: str) -> list[UserError]:
    """What speaks against training the model on text that is no prompt with its answer."""
    return refuse_running_text(str(model.path), read_json(model.path / CONFIG_FILE), what)


def _shape(model: Artifact, stop_ids: Sequence[int], options: Mapping[str, Any]) -> adapter.AdapterShape:
    rows = new_rows(model, stop_ids)
    embeddings: adapter.EmbeddingRows = options["embeddings"] or ("new" if rows else _whole_or_frozen(model))
    shape = {name: options[name] for name in ("rank", "alpha")}
    return adapter.AdapterShape(
        embeddings=embeddings, new_rows=rows, further=libraries.read_lora(options["lora"]), **shape
    )


def _whole_or_frozen(model: Artifact) -> adapter.EmbeddingRows:
    """Whole, or frozen where PEFT would train a copy of a tied embedding and leave the head behind."""
    shape = resolve_shape(read_json(model.path / CONFIG_FILE))
    return "frozen" if shape.tied and not shape.embedding.endswith(adapter.TIED_BY_PEFT) else "full"


def load_base(
    path: Path, dtype: torch.dtype, attention: str | None = None, *, quantized: bool = False
) -> PreTrainedModel:
    """Loads the model in the directory `path` for training: its weights in `dtype`, its loss in slices.

    `quantized` stores the linear layers in 4 bits (NF4, twice quantized, as in QLoRA).
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    options: dict[str, Any] = {"attn_implementation": attention or choose_attention(loading.load_config(path))}
    if quantized:
        options |= {
            "quantization_config": BitsAndBytesConfig(  # type: ignore[no-untyped-call]
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            ),
            "device_map": {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"},
        }
    return _for_training(loading.load_model(path, dtype=dtype, **options))


def empty_base(path: Path, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """The same model with tensors that nothing was read into, whose memory is not touched.

    Where weights are shared among processes, the main one reads them and all others receive their part from it: they
    would otherwise each hold the whole model until it is shared.
    """
    with init_empty_weights(include_buffers=False):
        model = loading.empty_model(path, dtype=dtype)
    model.set_attn_implementation(attention)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="cpu"), requires_grad=False))
    model.tie_weights()
    return _for_training(model)


def _for_training(model: Any) -> PreTrainedModel:
    assert isinstance(model, PreTrainedModel)
    attention.keep_documents_apart(model)
    use_sliced_loss(model)
    return model


def new_rows(model: Artifact, stop_ids: Sequence[int]) -> tuple[int, ...]:
    """The ids of the pieces that `yangtuo expand` gave to the model or to what it was made from; empty if unknown.

    With them go the old rows of the same language, and `stop_ids`: a base that never saw its end of text has the same
    row for it as for every unused token, and could not learn to stop.
    """
    details = model.manifest.details if model.manifest else {}
    first, count = details.get("first_new_row"), details.get("new_rows", 0)
    if first is None or not count:
        return ()
    own = {*details.get("related_rows", ()), *(token for token in stop_ids if token < first)}
    return (*sorted(own), *range(first, first + count))


def fresh_rows(model: Artifact, earlier: Artifact | None) -> float:
    """What share of the rate of fresh rows suits the model's new ones: 0 where somebody has trained them already, 1
    where they stand as `yangtuo expand` placed them, less where it distilled them.
    """
    if earlier is not None or model.manifest is None or model.manifest.stage != "expand":
        return 0.0
    return rates.DISTILLED if model.manifest.details.get("init") == "distil" else 1.0


def settings(model: Artifact, earlier: Artifact | None, options: Mapping[str, Any]) -> Settings:
    """The loop's settings among the `options` of a verb, and what the model's own history says about them."""
    output, trainer = Path(options["output"]), libraries.read_trainer(options["trainer"])
    schedule = str(trainer.pop("lr_scheduler_type", "linear"))
    stored = read_json(model.path / CONFIG_FILE)
    return Settings.among(
        {
            **options,
            "fresh_rows": fresh_rows(model, earlier),
            "first_new_row": grown_rows(model).get("first_new_row"),
            "board": output.with_name(f"{output.name}.tensorboard"),
            "trainer": trainer,
            "schedule": schedule,
            "stored_dtype": getattr(torch, str(stored.get("dtype") or stored.get("torch_dtype") or "float32")),
        }
    )


def end_ids(encoder: Encoder) -> tuple[int, ...]:
    """The id that ends a document, if the tokenizer has one."""
    return () if encoder.eos_id is None else (encoder.eos_id,)


def check_tokenizer(model: Artifact, encoder: Encoder, data: Artifact) -> list[UserError]:
    """What speaks against training the model, whose tokenizer is `encoder`, on the tokens of the dataset `data`."""
    errors: list[UserError] = []
    written = data.manifest.tokenizer if data.manifest else None
    if written != encoder.fingerprint:
        errors.append(
            LineageError(
                f"the tokens in {data.path} were written with another tokenizer than that of {model.path}",
                found=f"tokenizer {(written or 'unknown')[:12]}",
                expected=f"tokenizer {encoder.fingerprint[:12]}",
                run=f"yangtuo prepare --tokenizer {model.path} --source TEXTS --output DATA",
            )
        )
    return errors + check_rows(model, encoder)


def check_rows(model: Artifact, encoder: Encoder) -> list[UserError]:
    """What speaks against the model itself: fewer rows than its tokenizer has pieces."""
    num_rows = loading.load_config(model.path).get_text_config().vocab_size
    if num_rows >= encoder.vocabulary_size:
        return []
    return [
        WeightsError(
            f"{model.path} has fewer rows than its tokenizer has pieces",
            found=f"{num_rows:,} rows, {encoder.vocabulary_size:,} pieces",
            expected="a row for every piece",
            run=f"yangtuo expand --model {model.path} --tokenizer {model.path} --output GROWN",
        )
    ]


def check_kl_coef(
    model: Artifact, earlier: Artifact | None, stop_ids: Sequence[int], options: Mapping[str, Any]
) -> list[UserError]:
    """What speaks against holding the model to its old language, which is told by its tokens alone."""
    if not options["kl_coef"]:
        return []
    if grown_rows(model).get("new_rows"):
        return old_language.check_head(meta_model(model, earlier, stop_ids, options))
    return [
        LineageError(
            "--kl-coef tells the old language from the new one by its tokens",
            found=f"no new tokens in {model.path}",
            expected="a model that yangtuo expand has grown",
            run="the same command without --kl-coef",
        )
    ]


def check_earlier(model: Artifact, earlier: Artifact | None) -> list[UserError]:
    """What speaks against going on from the adapter `earlier`: that it was trained on another model."""
    if earlier is None or earlier.manifest is None or "model" not in earlier.manifest.parents:
        return []
    trained_on = earlier.manifest.parents["model"]
    if trained_on.fingerprint == model.fingerprint:
        return []
    return [
        LineageError(
            f"the adapter {earlier.path} was trained on another model than {model.path}",
            found=f"{trained_on.path}, fingerprint {trained_on.fingerprint[:12]}",
            expected=f"fingerprint {model.fingerprint[:12]}",
            run=f"the same command with --model {trained_on.path}",
        )
    ]


def finish(
    directory: Path, model: Artifact, stop_ids: Sequence[int] = (), template: str | None = None
) -> dict[str, Any]:
    """Completes what was trained in `directory` with the model's tokenizer files, a chat template and its stop ids.

    Returns what a manifest says of a whole model; raises `WeightsError` where one does not load as it stands. The
    checkpoints stay: until the artifact is described, a run that is killed goes on from them.
    """
    tokenizer = read_directory(model.path)
    if template is not None:
        ends = {"eos_token_id": list(stop_ids)}
        tokenizer = replace(tokenizer, templates={"default": template}, generation={**tokenizer.generation, **ends})
    copy_tokenizer(tokenizer, directory)
    if (directory / _ADAPTER_CONFIG).is_file():
        _sort_adapter_config(directory / _ADAPTER_CONFIG)
        return {}
    shutil.copyfile(model.path / CONFIG_FILE, directory / CONFIG_FILE)  # the architecture is what it was
    loading.load_model(directory, dtype="auto")
    return {**grown_rows(model), **summarize(open_checkpoint(directory))}


def _sort_adapter_config(path: Path) -> None:
    """PEFT writes sets in the order of this process's hashes; equal runs shall give equal bytes."""
    values = read_json(path)
    for name in ("target_modules", "modules_to_save", "exclude_modules"):
        if isinstance(values.get(name), list):
            values[name] = sorted(values[name])
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
