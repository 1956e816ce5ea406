"""A completion streamed by another server over HTTP, as the steps of our protocol; for engines in servers of their own.

The server's own idea of where to stop is not asked for: a reply ends at our stop ids and limits, whatever it says.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from yangtuo.errors import EngineError
from yangtuo.files import parse_json
from yangtuo.inference.engine import Cancel, Receive, Sampling, Step, Token

ReadTokens = Callable[[Mapping[str, Any]], Iterable[Token]]
"""The tokens of one event of a server's stream."""


@dataclass(frozen=True)
class Server:
    """Where an engine's server listens, and the key that it wants."""

    name: str
    host: str
    port: int
    key: str

    def connect(self, timeout: float | None = None) -> http.client.HTTPConnection:
        """A connection; none is kept between requests, so that closing one ends its work."""
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)

    def post(self, path: str, body: Mapping[str, Any], connection: http.client.HTTPConnection) -> Any:
        """The response to `body`; raises `EngineError` for any status but 200, with what the server says."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        try:
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise self.lost(error) from error
        if response.status != 200:
            raise EngineError(f"{self.name} refuses the request", found=response.read().decode(errors="replace")[:500])
        return response

    def ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object that the server answers `body` with."""
        connection = self.connect()
        try:
            return parse_json(self.post(path, body, connection).read(), self.name)
        except (OSError, http.client.HTTPException) as error:
            raise self.lost(error) from error
        finally:
            connection.close()

    def lost(self, error: Exception) -> EngineError:
        """What is raised where the server is gone."""
        return EngineError(f"{self.name} does not answer", found=str(error) or type(error).__name__)


def stream(
    server: Server, path: str, body: Mapping[str, Any], read: ReadTokens, sampling: Sampling, receive: Receive
) -> Cancel:
    """Posts `body` from a thread of its own and passes on what `read` finds in each event."""
    connection, cancelled = server.connect(), threading.Event()

    def work() -> None:
        last = Step(error=EngineError(f"{server.name} ended a reply before its end"))
        try:
            last = _pass_on(_events(server.post(path, body, connection)), read, sampling, receive, last)
        except EngineError as error:
            last = Step(error=error)
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            last = Step(error=server.lost(error))
        finally:
            connection.close()
            receive(Step(finish="cancelled") if cancelled.is_set() and last.error else last)

    def cancel() -> None:
        cancelled.set()
        if connection.sock is not None:
            try:
                connection.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # ended by itself in the meantime

    threading.Thread(target=work, name=f"{server.name}-request", daemon=True).start()
    return cancel


def _pass_on(
    events: Iterable[Mapping[str, Any]], read: ReadTokens, sampling: Sampling, receive: Receive, unfinished: Step
) -> Step:
    """Passes tokens on until the reply ends; returns the last step."""
    num_tokens = 0
    for event in events:
        if "error" in event:
            return Step(error=EngineError("the engine failed while it wrote a reply", found=str(event["error"])[:500]))
        for token in read(event):
            if token.id in sampling.stop_ids:
                return Step(finish="stop")
            receive(Step(token))
            num_tokens += 1
            if num_tokens >= sampling.max_tokens:
                return Step(finish="length")
    return unfinished


def _events(response: http.client.HTTPResponse) -> Iterator[Mapping[str, Any]]:
    while line := response.readline():
        if line.startswith(b"data: ") and line != b"data: [DONE]\n":
            yield json.loads(line[6:])
