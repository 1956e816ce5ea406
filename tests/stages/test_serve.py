"""Serving from the command line: it says where it is, answers, finishes what runs when it is stopped, and leaves."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from yangtuo import cli

pytest.importorskip("starlette", reason="needs the extra `serve`")


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`yangtuo serve` on a free port, and its address."""
    command = [sys.executable, "-m", "yangtuo", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        try:
            for line in process.stderr:
                said += line
                if found := re.search(r"http://\S+/v1", line):
                    yield process, found[0]
                    break
            else:
                pytest.fail(said)
        finally:
            process.kill()


def ask(address: str, path: str, body: dict[str, object]) -> dict[str, object]:
    request = urllib.request.Request(f"{address}/{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as response:
        return dict(json.load(response))


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp"])
def test_a_stop_lets_what_runs_finish(pico_model: Path, engine: str) -> None:
    with serving("--model", str(pico_model), "--engine", engine) as (process, address):
        body = {"prompt": "the cat", "max_tokens": 200, "stream": True, "logit_bias": {"2": -100}}
        request = urllib.request.Request(f"{address}/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as response:
            first = response.readline()
            process.send_signal(signal.SIGTERM)
            rest = response.read().decode()
        assert first.startswith(b"data: ")
        assert rest.rstrip().endswith("data: [DONE]")
        assert process.wait(timeout=60) == 0


def test_both_engines_give_the_same_greedy_text(pico_model: Path) -> None:
    texts = []
    for engine in ("transformers", "llama.cpp"):
        with serving("--model", str(pico_model), "--engine", engine) as (_, address):
            body = {"prompt": ["the cat", "你好</s>"], "max_tokens": 20, "temperature": 0}
            texts.append([choice["text"] for choice in ask(address, "completions", body)["choices"]])  # type: ignore[attr-defined]
    assert texts[0] == texts[1]


def test_a_port_in_use_is_named(pico_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert cli.invoke(["serve", "--model", str(pico_model), "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capfd.readouterr().err
