"""Replies of one request while an engine computes them: ended when the client leaves, or when time is up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

from starlette.requests import Request

from yangtuo.inference.conversation import Conversation
from yangtuo.inference.engine import Cancel, Sampling, Step
from yangtuo.serving.metrics import Metrics
from yangtuo.serving.replies import Choice


class Gone(Exception):  # noqa: N818  an outcome, as asyncio's own
    """The client has left."""


class Overdue(Exception):  # noqa: N818
    """The reply took longer than it may."""


async def run(
    request: Request,
    conversation: Conversation,
    choices: Sequence[Choice],
    samplings: Sequence[Sampling],
    timeout: float,
    metrics: Metrics,
) -> AsyncGenerator[tuple[int, str], None]:
    """Has all choices computed at a time; yields index and new text at each step of one, until all have ended.

    Raises what the engine failed with, `Gone` or `Overdue`; however it ends, nothing goes on being computed.
    """
    loop, steps = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Step | Exception]]()
    cancels: dict[int, Cancel] = {}
    watching = asyncio.ensure_future(_departure(request, steps))
    timer = loop.call_later(timeout, steps.put_nowait, (-1, Overdue()))
    try:
        with metrics.replies(len(choices)) as reply:
            for index, (choice, sampling) in enumerate(zip(choices, samplings, strict=True)):
                if sampling.max_tokens == 0:
                    yield index, choice.take(Step(finish="length"))
                    continue

                def receive(step: Step, index: int = index) -> None:
                    with suppress(RuntimeError):  # the loop has been closed: nobody listens any more
                        loop.call_soon_threadsafe(steps.put_nowait, (index, step))

                cancels[index] = conversation.engine.submit(choice.prompt, sampling, receive, conversation.adapter)
                reply.prompt(len(choice.prompt))
            running = set(cancels)
            while running:
                index, step = await steps.get()
                if isinstance(step, Exception):
                    raise step
                if step.error is not None:
                    raise step.error
                reply.step(is_token=step.token is not None)
                if step.is_last:
                    running.discard(index)
                if choices[index].finish is None:
                    text = choices[index].take(step)
                    if choices[index].finish is not None and not step.is_last:
                        cancels[index]()  # a stop string: the engine knows nothing of it
                    yield index, text
    finally:
        watching.cancel()
        timer.cancel()
        for index, cancel in cancels.items():
            if choices[index].finish is None:
                cancel()


async def _departure(request: Request, steps: asyncio.Queue[tuple[int, Step | Exception]]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    steps.put_nowait((-1, Gone()))
