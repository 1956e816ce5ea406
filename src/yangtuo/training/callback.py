"""What happens beside the steps: metrics log, progress bar, guards, held-out measures, the best adapter, checkpoints.

It is called by the Trainer and calls what it was given; it does not depend on how a step is made.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from yangtuo import console
from yangtuo.training import checkpoints, guards, processes
from yangtuo.training.adapter import Trained
from yangtuo.training.metrics_log import MetricsLog

BEST = "best"
_SPEED_AFTER = 10  # steps before the time left is said
_ECHO = 1.0  # seconds within which a launcher may pass on a Ctrl-C that has arrived already


@dataclass(kw_only=True)
class Run:
    """What a run gives to its progress callback."""

    model: Trained
    metrics: MetricsLog
    measure: Callable[[Callable[[str], None]], dict[str, float]]
    """Held-out bits per byte; what it is given is told how far it is."""
    losses_apart: Callable[[], dict[str, float]]
    """The losses of a step's conversations and replayed text, where both are read; all processes call it."""
    report: Callable[[dict[str, float]], None]
    """Tells the trackers of `report_to`."""
    batch_name: Callable[[int], str]
    """Which blocks an optimizer step was made of, in words."""
    save_adapter: Callable[[Path], None]
    directory: Path
    num_steps: int
    eval_every: int
    patience: int | None
    tokens_a_step: int
    bounds: dict[str, float]
    finite: guards.Finite

    @property
    def among(self) -> str:
        """Which measurements may be kept, in words."""
        return "that keeps the bound" if self.bounds else "of those measured"

    def best(self, measured: Sequence[tuple[int, dict[str, float]]]) -> tuple[int, dict[str, float]]:
        """The best measurement that keeps the bounds; that before training counts only where bounds leave no other."""
        before = measured[0][1]
        kept = [item for item in measured[1:] if guards.forgotten(self.bounds, before, item[1]) is None]
        return min(kept, key=lambda item: mean(item[1])) if kept else measured[0]


class ProgressCallback(TrainerCallback):
    """The Trainer's callback; see the module."""

    def __init__(self, run: Run, bar: console.Progress) -> None:
        self._run = run
        self._bar = bar
        self._first_step: int | None = None
        self._num_taken = 0
        self._movement: guards.Movement | None = None
        self._started = self._last = time.monotonic()
        self.signal: int | None = None
        """SIGTERM or SIGINT, where one has come: training ends after this step, with a checkpoint."""
        self.bound_is_broken = False
        self.ended: str | None = None
        """Why training ends before its last step, in words."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **values: Any) -> None:  # noqa: ARG002
        # Only now do model and parameters stand as they will be trained: sharded, on their device, in their dtype.
        self._movement = guards.Movement(values.get("model") or self._run.model)
        if state.global_step == 0 and (before := self._measure()):
            self._write_measures(0, before)
            if self._run.bounds:
                self._keep_best()  # nothing learned keeps every bound, until something better does

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **values: Any) -> None:  # noqa: ARG002
        assert self._movement is not None
        self._movement.see_gradients()

    def on_log(self, args: Any, state: Any, control: Any, **values: Any) -> None:  # noqa: ARG002
        logs = values.get("logs") or {}
        if "loss" not in logs:
            return
        step = state.global_step
        # JSON has no word for a number that is none; float16's overflows are rows without a norm.
        numbers = {
            name: logs[name]
            for name in ("loss", "grad_norm", "learning_rate")
            if math.isfinite(logs.get(name, math.nan))
        }
        apart = self._run.losses_apart()
        self._run.metrics.write(step, numbers | ({"losses": apart} if apart else {}))
        self._run.finite.check(step, logs["loss"], logs.get("grad_norm"), self._run.batch_name)
        now = time.monotonic()
        speed = self._run.tokens_a_step / max(now - self._last, 1e-9)
        self._last = now
        self._bar.advance(1, f"training: loss {logs['loss']:.3f}, {speed:,.0f} tokens/s")

    def on_step_end(self, args: Any, state: Any, control: Any, **values: Any) -> None:  # noqa: ARG002
        step = state.global_step
        if self._first_step is None:
            self._first_step, self._started = step, time.monotonic()
        done = step - self._first_step
        assert self._movement is not None
        # While float16's scale settles, the gradients of some steps overflow, and nothing is done with them.
        if not getattr(values.get("optimizer"), "step_was_skipped", False):
            self._num_taken += 1
            self._movement.check(self._num_taken)
        if done == _SPEED_AFTER:
            a_step = max(time.monotonic() - self._started, 1e-9) / done
            left = console.duration(a_step * (self._run.num_steps - step))
            console.detail(f"about {left} left, at {self._run.tokens_a_step / a_step:,.0f} tokens a second")
        if step % self._run.eval_every == 0 or step == self._run.num_steps:
            self._take_measures(step)
            control.should_training_stop |= self.ended is not None
        asked = (signal.SIGINT, signal.SIGTERM)
        came = processes.any_rank([self.signal == number for number in asked])
        if any(came):
            self.signal = asked[came.index(True)]
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **values: Any) -> None:  # noqa: ARG002
        assert self._movement is not None
        if self.signal is None:
            for line in self._movement.unused():
                console.warn(line)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        processes.main_process_first(lambda: checkpoints.mark_complete(path))

    @contextmanager
    def signals_save(self) -> Iterator[None]:
        """While this lasts, SIGTERM and Ctrl-C ask for a checkpoint and an orderly end; Ctrl-C again ends at once."""
        came = 0.0

        def end(number: int, _frame: FrameType | None) -> None:
            nonlocal came
            if self.signal is not None:
                if number == signal.SIGINT and (processes.world_size() == 1 or time.monotonic() - came > _ECHO):
                    raise KeyboardInterrupt
                return
            self.signal, came = number, time.monotonic()
            if processes.rank() == 0 and number == signal.SIGINT:
                # Not through the console: the signal may have come while that was writing.
                os.write(2, b"\nending after this step, with a checkpoint; Ctrl-C again ends at once\n")

        previous = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _measure(self) -> dict[str, float]:
        return self._run.measure(lambda text: self._bar.advance(0, text))

    def _write_measures(self, step: int, now: dict[str, float]) -> None:
        self._run.metrics.write(step, {"bits_per_byte": now})
        self._run.report({f"bits_per_byte/{name}": value for name, value in now.items()})

    def _take_measures(self, step: int) -> None:
        now = self._measure()
        if not now:
            return
        self._write_measures(step, now)
        measured = self._run.metrics.series("bits_per_byte")
        name = guards.forgotten(self._run.bounds, measured[0][1], now)
        best_step = self._run.best(measured)[0]
        if name is not None:
            self.bound_is_broken = True
            self.ended = (
                f"training ends at step {step}: the bound on {name} is broken, {now[name]:.4f} bits per byte after "
                f"{measured[0][1][name]:.4f} before, more than {self._run.bounds[name]:.1%} worse"
            )
        elif self._run.patience is not None and len(measured) - 1 - _place(measured, best_step) >= self._run.patience:
            self.ended = (
                f"training ends at step {step}: no better than step {best_step} in {self._run.patience} measurements"
            )
        if best_step == step and self._run.num_steps > step:
            self._keep_best()
        elif best_step == step and processes.rank() == 0:
            shutil.rmtree(self._run.directory / BEST, ignore_errors=True)  # the last is the best

    def _keep_best(self) -> None:
        fresh = self._run.directory / f".{BEST}"
        self._run.save_adapter(fresh)
        if processes.rank() == 0:
            shutil.rmtree(self._run.directory / BEST, ignore_errors=True)
            fresh.rename(self._run.directory / BEST)


def mean(values: dict[str, float]) -> float:
    """The figure by which measurements are compared."""
    return sum(values.values()) / len(values)


def _place(measured: Sequence[tuple[int, dict[str, float]]], step: int) -> int:
    return next(place for place, item in enumerate(measured) if item[0] == step)
