"""Runs an application on a port until it is told to stop, and lets what runs finish."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn

from yangtuo.errors import ServingError

_GRACE_SECONDS = 120


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; raises `ServingError` where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host, port))
    except OSError as error:
        opened.close()
        raise ServingError(
            f"cannot listen on {host}:{port}",
            found=str(error.strerror or error),
            expected="an address of this machine and a free port",
            run="the same command with another --port",
        ) from error
    opened.listen(512)
    return opened


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it begins to stop."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    def handle_exit(self, sig: int, frame: Any) -> None:
        """The first signal lets what runs finish, the second does not."""
        self._on_stop()
        super().handle_exit(sig, frame)


def serve(app: Any, opened: socket.socket, on_stop: Callable[[], None]) -> None:
    """Serves `app` until SIGINT or SIGTERM; then takes no more and finishes what runs."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=_GRACE_SECONDS, lifespan="off", ws="none"
    )
    # uvicorn raises the signal again once all is done, and that would end us as if nothing had been finished.
    with suppress(KeyboardInterrupt):
        _Server(config, on_stop).run(sockets=[opened])


@contextmanager
def in_background(app: Any, opened: socket.socket) -> Iterator[None]:
    """Serves `app` in a thread while the block runs."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
        opened.close()
