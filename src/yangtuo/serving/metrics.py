"""What a server counts, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The figures of one server; every one has its own."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self._requests = Counter("yangtuo_requests", "Requests by path and status.", ["path", "status"], registry=own)
        self._running = Gauge("yangtuo_replies_running", "Replies that run or wait.", registry=own)
        self._tokens = Counter("yangtuo_tokens", "Tokens by direction.", ["direction"], registry=own)
        first, whole = "yangtuo_first_token_seconds", "yangtuo_reply_seconds"
        self._first = Histogram(first, "Until a reply begins.", buckets=_SECONDS, registry=own)
        self._whole = Histogram(whole, "Until all replies of a request have ended.", buckets=_SECONDS, registry=own)
        self.running = self.num_requests = 0

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)

    @contextmanager
    def request(self, path: str) -> Iterator[Callable[[int], None]]:
        """Counts a request under the status that is set in it, 500 if none is; unknown paths are one."""
        status = 500

        def outcome(value: int) -> None:
            nonlocal status
            status = value

        try:
            yield outcome
        finally:
            self.num_requests += 1
            self._requests.labels(path if not path.startswith("/v1/models/") else "/v1/models", str(status)).inc()

    @contextmanager
    def replies(self, count: int) -> Iterator[Reply]:
        """Counts the replies of a request while they run."""
        self.running += count
        self._running.set(self.running)
        start = time.monotonic()
        try:
            yield Reply(self._tokens, self._first, start)
        finally:
            self.running -= count
            self._running.set(self.running)
            self._whole.observe(time.monotonic() - start)


class Reply:
    """What is counted of one request's replies."""

    def __init__(self, tokens: Counter, first: Histogram, start: float) -> None:
        self._in, self._out = tokens.labels("in"), tokens.labels("out")
        self._first, self._start = first, start
        self._has_begun = False

    def prompt(self, count: int) -> None:
        """Counts tokens of a prompt."""
        self._in.inc(count)

    def step(self, *, is_token: bool) -> None:
        """Counts a step, and the time until the first."""
        if is_token:
            self._out.inc()
        if not self._has_begun:
            self._has_begun = True
            self._first.observe(time.monotonic() - self._start)
