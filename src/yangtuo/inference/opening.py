"""From what a user names, a model and adapters and an engine, to conversations that are ready.

An adapter goes on unmerged where the engine can; where it cannot, or where several follow each other, they are merged
into the cache, and a line says why.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from yangtuo import console
from yangtuo.artifacts.lineage import check_chain
from yangtuo.artifacts.manifest import Artifact, Kind, open_artifact, state_key
from yangtuo.config.options import split_source
from yangtuo.data.template import Template, get_template
from yangtuo.errors import ConfigError, ServingError, UserError, WeightsError, raise_all
from yangtuo.inference.adapters import EngineName, reasons_to_merge
from yangtuo.inference.cache import cached
from yangtuo.inference.conversation import Conversation, open_encoder, open_template
from yangtuo.inference.engine import Engine
from yangtuo.weights.adapter import open_adapter
from yangtuo.weights.gguf import open_gguf, write_gguf
from yangtuo.weights.gguf_adapter import write_gguf_adapter
from yangtuo.weights.layouts import open_checkpoint, summarize

_FLOATS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Opened:
    """Conversations by model id, over as few engines as do it; the first is the model itself."""

    conversations: dict[str, Conversation]
    faster: str | None = None
    """What would make replies come faster than on this CPU; None on a GPU."""

    @property
    def engines(self) -> list[Engine]:
        """Every engine once."""
        return list(
            {id(conversation.engine): conversation.engine for conversation in self.conversations.values()}.values()
        )

    def close(self) -> None:
        """Closes all engines."""
        for engine in self.engines:
            engine.close()


def open_conversations(
    model: str,
    adapters: Sequence[str] = (),
    engine: str = "auto",
    template: str | None = None,
    dtype: str = "auto",
) -> Opened:
    """Opens `model` with `adapters`: PATH in the order of training on one model, NAME=PATH each as a model of its own.

    `template` names one of `data.template.TEMPLATES`; None takes the model's own. `dtype`: float32, bfloat16, or auto
    for what is exact on a CPU and what is stored on a GPU.
    """
    base = open_artifact(model, Kind.MODEL)
    chain = [open_artifact(reference, Kind.ADAPTER) for reference in adapters if not _is_named(reference)]
    named = {
        source.name: open_artifact(source.path, Kind.ADAPTER)
        for source in map(split_source, filter(_is_named, adapters))
    }
    raise_all(
        [*check_chain(base, chain), *(e for adapter in named.values() for e in check_chain(base, [*chain, adapter]))]
    )
    chosen = _choose(engine, base.path)
    if base.path.is_file() and dtype != "auto":
        raise ConfigError(
            f"{base.path} is computed in the number format that it is stored in",
            found=f"--dtype {dtype}",
            expected="a model directory, or no --dtype",
        )
    path, on_top = base.path, {}
    if chain and not named and len(chain) == 1 and not (why := _reason_to_merge(chosen, path, chain[0].path)):
        on_top = {"adapter": chain[0].path}
    elif chain:
        path = _merged(base, chain, why if len(chain) == 1 and not named else "adapters in order make one model")
    opened: dict[str, Conversation] = {}
    names = {name: _reason_to_merge(chosen, path, adapter.path) for name, adapter in named.items()}
    on_top |= {name: named[name].path for name, why in names.items() if not why}
    runner = _start(chosen, path, on_top, dtype)
    title = base.path.stem if base.path.is_file() else base.path.resolve().name
    own = chain[-1].path if on_top.keys() == {"adapter"} and chain else None
    opened[title] = _conversation(runner, path, own, template, "adapter" if own else None)
    for name, why in names.items():
        if why:
            merged = _merged(base, [*chain, named[name]], why)
            opened[name] = _conversation(_start(chosen, merged, {}, dtype), merged, None, template)
        else:
            opened[name] = _conversation(runner, path, named[name].path, template, name)
    return Opened(opened, _faster(chosen, base.path))


def _reason_to_merge(engine: EngineName, model: Path, adapter: Path) -> str | None:
    """Why an adapter has to be merged before the engine runs it, or None."""
    reason = reasons_to_merge(adapter, model)[engine]
    if reason is None and engine == "llama.cpp":
        try:
            _gguf_adapter(model, adapter)
        except WeightsError as error:
            return error.problem
    return reason


def _is_named(reference: str) -> bool:
    return split_source(reference).path != reference and not Path(reference).exists()


def _conversation(
    engine: Engine, model: Path, adapter: Path | None, template: str | None, name: str | None = None
) -> Conversation:
    if model.is_file():
        model = _gguf_tokenizer(model)
    own: Template = get_template(template, adapter or model) if template else open_template(model, adapter)
    return Conversation(engine, open_encoder(model, adapter), own, name)


def _choose(engine: str, model: Path) -> EngineName:
    """The engine that is meant by `auto`: vLLM on a GPU, llama.cpp on a CPU for Llamas, else transformers."""
    import torch

    if model.is_file():
        if engine not in ("auto", "llama.cpp"):
            raise ConfigError(
                f"the engine {engine} reads no GGUF file",
                expected="--engine llama.cpp, or a model directory",
                run=f"yangtuo convert --source {model} --output NAME",
            )
        return "llama.cpp"
    if engine != "auto":
        assert engine in ("transformers", "vllm", "llama.cpp")
        return engine  # type: ignore[return-value]
    if torch.cuda.is_available():
        from yangtuo.inference.vllm_engine import find_python

        return "vllm" if find_python() else "transformers"
    if find_spec("xllamacpp") is None or find_spec("gguf") is None:
        return "transformers"
    try:
        _ids_only_gguf(model)
    except WeightsError as error:
        console.note(f"engine transformers: {error.problem}")
        return "transformers"
    return "llama.cpp"


def _faster(engine: EngineName, model: Path) -> str | None:
    import torch

    if torch.cuda.is_available():
        return None
    if engine == "transformers" and find_spec("xllamacpp") is None:
        return "llama.cpp, several times as fast: pip install 'yangtuo[serve]'"
    if engine == "llama.cpp" and (model.is_dir() or open_gguf(model).quantization is None):
        source = "" if model.is_dir() else f"yangtuo convert --source {model} --output MODEL, "
        name = model if model.is_dir() else "MODEL"
        export = f"yangtuo export --model {name} --format gguf --quantize q8_0 --output NAME"
        return f"8 bits a weight: {source}{export}, then chat with NAME/model.gguf"
    return "a GPU, or a smaller model"


def _start(engine: EngineName, model: Path, adapters: dict[str, Path], dtype: str) -> Engine:
    if engine == "llama.cpp":
        from yangtuo.inference.llama_cpp_engine import LlamaCppEngine

        files = {name: _gguf_adapter(model, adapter) for name, adapter in adapters.items()}
        return LlamaCppEngine(_ids_only_gguf(model, dtype), adapters=files)
    import torch

    if engine == "vllm":
        from yangtuo.inference.vllm_engine import VllmEngine

        return VllmEngine(model, adapters, on_gpu=torch.cuda.is_available(), dtype=dtype)
    from yangtuo.inference.transformers_engine import TransformersEngine, load_adapted

    given = None if dtype == "auto" else getattr(torch, dtype)
    return TransformersEngine(load_adapted(model, adapters, given), by_name=True)


def _ids_only_gguf(model: Path, dtype: str = "auto") -> Path:
    """What llama.cpp is given for a model directory or a GGUF file, from the cache; auto keeps the stored dtype."""
    from yangtuo.inference.llama_cpp_engine import write_ids_only

    def make(path: Path) -> None:
        if model.is_file():
            write_ids_only(model, path)
            return
        checkpoint, whole = open_checkpoint(model), path.with_suffix(".whole")
        try:
            write_gguf(whole, checkpoint, _FLOATS[summarize(checkpoint)["dtype"] if dtype == "auto" else dtype])
            write_ids_only(whole, path)
        finally:
            whole.unlink(missing_ok=True)

    return cached(f"{state_key(model)}.{dtype}.gguf", make)


def _gguf_adapter(model: Path, adapter: Path) -> Path:
    """A LoRA adapter as llama.cpp reads it, from the cache."""

    def make(path: Path) -> None:
        write_gguf_adapter(path, open_checkpoint(model), open_adapter(adapter, str(adapter), adapter))

    return cached(f"{state_key(model, adapter)}.lora.gguf", make)


def _gguf_tokenizer(file: Path) -> Path:
    """The directory of a GGUF file's tokenizer and chat template, from the cache."""

    def make(path: Path) -> None:
        path.mkdir()
        open_gguf(file).tokenizer.write(path)

    return cached(f"{state_key(file)}.tokenizer", make)


def _merged(base: Artifact, adapters: Sequence[Artifact], why: str | None) -> Path:
    """The model with all adapters folded in, from the cache; made by `yangtuo merge` in a process of its own."""
    names = ", ".join(str(adapter.path) for adapter in adapters)
    console.note(f"merged before it runs: {names} ({why})")

    def make(path: Path) -> None:
        command = [sys.executable, "-m", "yangtuo", "merge", "--base", str(base.path), "--output", str(path)]
        for adapter in adapters:
            command += ["--adapter", str(adapter.path)]
        done = subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, check=False)
        if done.returncode:
            kind = UserError if done.returncode == 2 else ServingError
            raise kind(done.stderr.strip().removeprefix("error: ") or "the adapters cannot be merged")

    return cached(state_key(base.path, *(adapter.path for adapter in adapters)), make)
