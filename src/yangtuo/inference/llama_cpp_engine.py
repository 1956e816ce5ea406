"""llama.cpp in this process (the wheel `xllamacpp`): the fast engine on a CPU, from a GGUF file.

Its server streams text, and holds back the tokens of a character until that is whole. So it gets a copy of the file
whose vocabulary is numbers: no text, no template and no control token exist in it, and every id comes as it is drawn.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from yangtuo.errors import ConfigError, EngineError, ServingError
from yangtuo.inference.engine import Cancel, Receive, Sampling, Token, UnsupportedError, not_finite
from yangtuo.inference.streaming import Server, stream

MAX_ROWS = 16
_EXTRA = frozenset(
    ("dynatemp_range", "dynatemp_exponent", "typical_p", "mirostat", "mirostat_tau", "mirostat_eta", "top_n_sigma")
)
_CONTEXT = 4096
"""Most tokens that a row has room for where the model could do more: memory is taken for all rows at the start."""


class LlamaCppEngine:
    """`inference.engine.Engine` over llama.cpp's server, on loopback and behind a key that only this process has."""

    name = "llama.cpp"
    extra_settings = _EXTRA

    def __init__(
        self,
        file: Path,
        max_rows: int = MAX_ROWS,
        context_length: int | None = None,
        adapters: Mapping[str, Path] | None = None,
    ) -> None:
        """Loads `file`, as `write_ids_only` made it, and GGUF `adapters` that requests name."""
        library = _library()
        metadata, is_float32 = _facts(file)
        trained = next(int(value) for name, value in metadata.items() if name.endswith(".context_length"))
        self.context_length: int | None = min(context_length or _CONTEXT, trained)
        self._adapters = list(adapters or ())
        key = secrets.token_hex(16)
        parameters = library.CommonParams()
        parameters.lora_adapters = [library.CommonAdapterLoraInfo(str(path), 0.0) for path in (adapters or {}).values()]
        parameters.model.path = str(file)
        # The cells are shared; a row of its own length for each would be the sum of them all the same.
        parameters.n_ctx = self.context_length * max_rows
        parameters.n_parallel = max_rows
        parameters.cont_batching, parameters.warmup, parameters.cache_prompt = True, False, True
        parameters.ctx_shift, parameters.verbosity, parameters.port = False, -1, 0
        parameters.api_keys, parameters.ui, parameters.use_jinja = [key], False, False
        threads = len(os.sched_getaffinity(0))
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        if is_float32:  # half precision in keys and values, or in flash attention, would undo what the weights keep
            parameters.cache_type_k = parameters.cache_type_v = library.ggml_type.GGML_TYPE_F32
            parameters.flash_attn_type = library.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        try:
            self._library_server = library.Server(parameters)
        except RuntimeError as error:
            raise ServingError(f"llama.cpp cannot load {file}", found=str(error)) from error
        host, _, port = self._library_server.listening_address.removeprefix("http://").rpartition(":")
        self._server = Server(self.name, host, int(port), key)
        self._require_numbers()

    def submit(self, prompt: Sequence[int], sampling: Sampling, receive: Receive, adapter: str | None = None) -> Cancel:
        """Queues a prompt, see `Engine.submit`."""
        body = {
            **self._chosen(adapter),
            "prompt": list(prompt),
            "n_predict": sampling.max_tokens,
            "stream": True,
            "return_tokens": True,
            "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p", "typ_p", "top_n_sigma"],
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "repeat_penalty": sampling.repetition_penalty,
            "repeat_last_n": self.context_length,
            "seed": -1 if sampling.seed is None else sampling.seed % (1 << 32),
            "logit_bias": [list(pair) for pair in sampling.logit_bias],
            "n_probs": 0 if sampling.logprobs is None else max(1, sampling.logprobs),
            **sampling.extra,
        }
        return stream(self._server, "/completion", body, self._tokens, sampling, receive)

    def score(self, ids: Sequence[int], logprobs: int, adapter: str | None = None) -> list[Token]:  # noqa: ARG002
        """llama.cpp's server reports no probabilities of a prompt."""
        raise UnsupportedError("llama.cpp gives no probabilities of prompt tokens", run="--engine transformers")

    def embed(self, ids: Sequence[int], adapter: str | None = None) -> list[float]:  # noqa: ARG002
        """llama.cpp's server embeds only in a mode of its own."""
        raise UnsupportedError("llama.cpp computes no embeddings beside replies", run="--engine transformers")

    def check(self) -> None:
        """Raises `ServingError` once the engine is closed."""
        if self._library_server is None:
            raise ServingError("the engine has been stopped")

    def close(self) -> None:
        """Ends the server."""
        self._library_server = None

    def _chosen(self, adapter: str | None) -> dict[str, Any]:
        """The scale of every adapter: none is on but that which is named."""
        assert adapter is None or adapter in self._adapters, f"no adapter {adapter}"
        scales = [{"id": index, "scale": float(name == adapter)} for index, name in enumerate(self._adapters)]
        return {"lora": scales} if scales else {}

    def _require_numbers(self) -> None:
        """Raises `EngineError` where the model computes NaN, of which llama.cpp says nothing: it takes the first id."""
        body = {"prompt": [0], "n_predict": 1, "n_probs": 1, "temperature": 0, "return_tokens": True}
        try:
            for token in self._tokens(self._server.ask("/completion", body)):
                if token.logprob is None or not math.isfinite(token.logprob):
                    raise not_finite()
        except EngineError:
            self.close()
            raise

    def _tokens(self, event: Mapping[str, Any]) -> Iterator[Token]:
        details = event.get("completion_probabilities") or [{}] * len(event["tokens"])
        for token, detail in zip(event["tokens"], details, strict=True):
            top = tuple((entry["id"], entry["logprob"]) for entry in detail.get("top_logprobs", ()))
            yield Token(token, detail.get("logprob"), top)


def write_ids_only(source: Path, target: Path) -> None:
    """Copies a GGUF file with a vocabulary of numbers in the place of its tokenizer, tensor by tensor."""
    import gguf

    reader = gguf.GGUFReader(source)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    architecture = fields.pop("general.architecture").contents()
    num_rows = next(int(t.shape[1]) for t in reader.tensors if t.name == "token_embd.weight")
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in fields.items():
        if not name.startswith("tokenizer."):
            kind = field.types[0]
            writer.add_key_value(name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    writer.add_tokenizer_model("rwkv")  # the one kind of vocabulary that has no end of text unless told
    writer.add_token_list([f"t{index}" for index in range(num_rows)])
    writer.add_token_scores([0.0] * num_rows)
    writer.add_token_types([gguf.TokenType.NORMAL] * num_rows)
    writer.add_add_bos_token(False)
    for tensor in reader.tensors:
        size = tensor.data.shape
        writer.add_tensor_info(tensor.name, size, tensor.data.dtype, tensor.data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()


def _facts(file: Path) -> tuple[dict[str, Any], bool]:
    """The metadata but for arrays, and whether all tensors are float32."""
    import gguf

    reader = gguf.GGUFReader(file)
    scalars = {name: field.contents() for name, field in reader.fields.items() if len(field.types) == 1}
    return scalars, all(tensor.tensor_type == gguf.GGMLQuantizationType.F32 for tensor in reader.tensors)


def _library() -> Any:
    try:
        import xllamacpp
    except ImportError as error:
        raise ConfigError("the engine llama.cpp needs xllamacpp", run="pip install 'yangtuo[serve]'") from error
    return xllamacpp
