"""vLLM in a process and an environment of its own: the fast engine on GPUs.

It is started as its own OpenAI server on loopback, supervised, and ended with us; ids go in and ids come out. The
Python that has vLLM is that of the variable YANGTUO_VLLM_PYTHON, or ours where vLLM is importable.
"""

from __future__ import annotations

import ctypes
import http.client
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from yangtuo import console
from yangtuo.errors import ConfigError, EngineError, ServingError
from yangtuo.files import read_json
from yangtuo.inference.engine import Cancel, Receive, Sampling, Token, UnsupportedError, not_finite
from yangtuo.inference.streaming import Server, stream

PYTHON_VARIABLE = "YANGTUO_VLLM_PYTHON"
_START_SECONDS = 600
_BASE = "base"
_EXTRA = frozenset(["length_penalty", "min_tokens", "bad_words", "allowed_token_ids", "structured_outputs", "priority"])
_DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


def find_python() -> str | None:
    """The Python that has vLLM, or None where there is none."""
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        return named
    return sys.executable if find_spec("vllm") is not None else None


class VllmEngine:
    """`inference.engine.Engine` over a vLLM server that this process starts; adapters are loaded by name, unmerged."""

    name = "vLLM"
    extra_settings = _EXTRA

    def __init__(
        self, model: Path, adapters: Mapping[str, Path], *, on_gpu: bool, dtype: str = "auto", max_rank: int = 64
    ) -> None:
        python = find_python()
        if python is None:
            raise ConfigError(
                "the engine vllm needs vLLM",
                found="no package vllm here",
                expected=f"{PYTHON_VARIABLE}=PYTHON of an environment that has it",
                run="python -m venv vllm && vllm/bin/pip install vllm",
            )
        config: dict[str, Any] = read_json(model / "config.json")
        self.context_length: int | None = config.get("max_position_embeddings")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._server = Server(self.name, "127.0.0.1", port, secrets.token_hex(16))
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--host", "127.0.0.1"]
        command += ["--port", str(port), "--served-model-name", _BASE, "--enforce-eager", "--max-logprobs", "20"]
        command += ["--generation-config", "vllm"]
        command += ["--dtype", "float32" if dtype == "auto" and not on_gpu else dtype]
        if adapters:
            command += ["--enable-lora", "--max-lora-rank", str(max_rank), "--lora-modules"]
            command += [f"{name}={path}" for name, path in adapters.items()]
        # Ends when we close it, and with its file when we are killed.
        self._log = tempfile.NamedTemporaryFile("w+", prefix="vllm-", suffix=".log")  # noqa: SIM115
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, "VLLM_API_KEY": self._server.key}
        environment.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, env=environment, preexec_fn=_end_with_parent
        )
        self._await_start()
        self._require_numbers()

    def submit(self, prompt: Sequence[int], sampling: Sampling, receive: Receive, adapter: str | None = None) -> Cancel:
        """Queues a prompt, see `Engine.submit`."""
        self.check()
        body = {
            **self._common(prompt, adapter),
            "stream": True,
            "return_token_ids": True,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "repetition_penalty": sampling.repetition_penalty,
            "seed": None if sampling.seed is None else sampling.seed % (1 << 63),
            "logprobs": sampling.logprobs,
            "return_tokens_as_token_ids": True,
            "ignore_eos": True,  # what ends a reply is in stop_ids
            "stop_token_ids": list(sampling.stop_ids),
            "skip_special_tokens": False,
            "logit_bias": {str(token): bias for token, bias in sampling.logit_bias} or None,
            **sampling.extra,
        }
        return stream(self._server, "/v1/completions", body, _tokens, sampling, receive)

    def score(self, ids: Sequence[int], logprobs: int, adapter: str | None = None) -> list[Token]:
        """Each of `ids` with its probability, see `Engine.score`."""
        self.check()
        body = {**self._common(ids, adapter), "max_tokens": 1, "temperature": 0, "prompt_logprobs": max(1, logprobs)}
        places: list[Any] = self._server.ask("/v1/completions", body)["choices"][0]["prompt_logprobs"]
        tokens = [Token(ids[0])]
        for token, place in zip(ids[1:], places[1:], strict=True):
            ranked = sorted(((int(index), entry["logprob"]) for index, entry in place.items()), key=lambda e: -e[1])
            tokens.append(Token(token, dict(ranked)[token], tuple(ranked[:logprobs])))
        return tokens

    def embed(self, ids: Sequence[int], adapter: str | None = None) -> list[float]:  # noqa: ARG002
        """vLLM embeds with a model that it was started for, and ours writes."""
        raise UnsupportedError("vLLM computes no embeddings beside replies", run="--engine transformers")

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()

    def _common(self, ids: Sequence[int], adapter: str | None) -> dict[str, Any]:
        return {"model": adapter or _BASE, "prompt": list(ids), "add_special_tokens": False}

    def _await_start(self) -> None:
        """Waits until the server answers; raises `ServingError` with the end of its log where it does not."""
        end = time.monotonic() + _START_SECONDS
        with console.progress("starting vLLM", None):
            while time.monotonic() < end:
                self.check()
                connection = self._server.connect(timeout=5)
                try:
                    connection.request("GET", "/health")
                    if connection.getresponse().status == 200:
                        return
                except (OSError, http.client.HTTPException):
                    time.sleep(0.25)
                finally:
                    connection.close()
        self.close()
        raise ServingError("vLLM has not started", found=f"no answer within {_START_SECONDS} seconds")

    def _require_numbers(self) -> None:
        """Raises `EngineError` where the model computes NaN, of which vLLM says nothing: it takes the first id."""
        body = {**self._common([0], None), "max_tokens": 1, "temperature": 0, "logprobs": 1}
        try:
            (choice,) = self._server.ask("/v1/completions", body)["choices"]
            if not all(value is not None and math.isfinite(value) for value in choice["logprobs"]["token_logprobs"]):
                raise not_finite()
        except EngineError:
            self.close()
            raise

    def check(self) -> None:
        """Raises `ServingError` with the last error of its log where the process has ended."""
        if self._process.poll() is not None:
            self._log.seek(0)
            lines = [line for line in self._log.read().splitlines() if "Error" in line]
            raise ServingError(
                f"vLLM has ended with status {self._process.returncode}", found=lines[-1] if lines else "nothing said"
            )


def _tokens(event: Mapping[str, Any]) -> Iterator[Token]:
    for choice in event.get("choices", ()):
        ids, logprobs = choice.get("token_ids") or (), choice.get("logprobs")
        for place, token in enumerate(ids):
            if logprobs is None:
                yield Token(token)
                continue
            top = [(_id(name), value) for name, value in (logprobs["top_logprobs"][place] or {}).items()]
            yield Token(token, logprobs["token_logprobs"][place], tuple(sorted(top, key=lambda entry: -entry[1])))


def _id(name: str) -> int:
    return int(name.removeprefix("token_id:"))


def _end_with_parent() -> None:
    """In the child, before it runs: Linux ends it when we are gone, however we went."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)
