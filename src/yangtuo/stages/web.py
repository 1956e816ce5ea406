"""`yangtuo web`: the page, over a model of ours or any server of the OpenAI API."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from yangtuo import console
from yangtuo.config.web import WebConfig
from yangtuo.errors import ConfigError, ServingError
from yangtuo.inference.opening import open_conversations


def run(config: WebConfig) -> dict[str, object]:
    """Shows the page until Ctrl-C or SIGTERM; returns where it was."""
    if (config.model is None) == (config.server is None):
        raise ConfigError("what the page shows is not clear", expected="either --model or --server")
    try:
        import openai

        from yangtuo.serving.page import Page
    except ImportError as error:
        raise ConfigError(f"the page needs {error.name}", run="pip install 'yangtuo[web]'") from error
    host = "0.0.0.0" if config.listen else "127.0.0.1"
    password = config.password or os.environ.get("YANGTUO_PASSWORD")
    if config.listen and not password:
        console.warn("whoever reaches this machine can use the page: --password is not set")
    with _server(config) as (address, key), openai.OpenAI(base_url=address, api_key=key) as client:
        try:
            page = Page(client)
        except openai.APIError as error:
            raise ServingError(f"{address} does not answer", found=error.message) from error
        blocks = page.blocks().queue(default_concurrency_limit=16)
        try:
            blocks.launch(
                server_name=host,
                server_port=config.listen_port or None,
                prevent_thread_lock=True,
                i18n=page.words,
                auth=None
                if password is None
                else lambda _, given: secrets.compare_digest(given.encode(), password.encode()),
                run_history=False,
                quiet=True,
                footer_links=[],
            )
        except OSError as error:
            raise ServingError(
                f"cannot listen on {host}:{config.listen_port}",
                found=str(error),
                run="the same command with another --listen-port",
            ) from error
        console.note(f"the page is on {blocks.local_url}")
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
        blocks.close(verbose=False)
    return {"address": blocks.local_url}


@contextmanager
def _server(config: WebConfig) -> Iterator[tuple[str, str]]:
    """Address and key of the server that the page asks: the one that is named, or one of our own on loopback."""
    if config.server is not None:
        path = urlsplit(config.server).path.strip("/")
        yield config.server if path else config.server.rstrip("/") + "/v1", os.environ.get("OPENAI_API_KEY", "none")
        return
    from yangtuo.serving.app import Front
    from yangtuo.serving.server import in_background, listen

    assert config.model is not None
    opened = open_conversations(config.model, config.adapter, config.engine, config.template, config.dtype)
    key, listening = secrets.token_hex(16), listen("127.0.0.1", 0)
    try:
        with in_background(Front(opened.conversations, [key]).app(), listening):
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1", key
    finally:
        opened.close()
