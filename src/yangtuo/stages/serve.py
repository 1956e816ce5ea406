"""`yangtuo serve`: a model behind the OpenAI API, until it is stopped."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from yangtuo import console
from yangtuo.config.serve import ServeConfig
from yangtuo.errors import ConfigError
from yangtuo.inference.opening import open_conversations

if TYPE_CHECKING:
    from socket import socket

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def run(config: ServeConfig) -> dict[str, object]:
    """Serves until Ctrl-C or SIGTERM, lets running replies finish, and returns what was served."""
    try:
        from yangtuo.serving.app import Front
        from yangtuo.serving.server import listen, serve
    except ImportError as error:
        raise ConfigError(f"serving needs {error.name}", run="pip install 'yangtuo[serve]'") from error
    keys = [key for key in (*config.api_key, os.environ.get("YANGTUO_API_KEY", "")) if key]
    if config.host not in _LOOPBACK and not keys:
        console.warn(f"{config.host} can be reached from elsewhere, and no --api-key is set")
    listening = listen(config.host, config.port)
    opened = open_conversations(config.model, config.adapter, config.engine, config.template, config.dtype)
    front = Front(opened.conversations, keys, config.max_waiting, config.timeout)

    def stop() -> None:
        front.stopping = True

    try:
        console.note(f"{', '.join(opened.conversations)} on {_address(listening)}/v1 ({opened.engines[0].name})")
        serve(front.app(), listening, stop)
    finally:
        opened.close()
    return {"models": list(opened.conversations), "requests": front.metrics.num_requests}


def _address(listening: socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
