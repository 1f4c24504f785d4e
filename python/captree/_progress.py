"""Progress of long work: a bar on a terminal, plain lines elsewhere, or the caller's own function."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from captree.errors import InvalidTypeError

Callback = Callable[[str, int, int], object]
"""``callback(phase, done, total)``; ``total`` is 0 while it is not known."""

Progress = bool | Callback | None


@contextmanager
def reporting(progress: Progress) -> Iterator[Callback | None]:
    """Yields the callback that `progress` asks for, or None, and ends a bar's line afterwards.

    ``True`` draws on standard error, any callable is used as it is, ``False`` and ``None`` are silent.
    """
    if progress is None or progress is False:
        yield None
    elif progress is True:
        reporter = Reporter(sys.stderr)
        try:
            yield reporter
        finally:
            reporter.close()
    elif callable(progress):
        yield progress
    else:
        raise InvalidTypeError(f"expected a bool or a callable, got {type(progress).__name__}", parameter="progress")


class Reporter:
    """Draws ``callback(phase, done, total)`` on a text stream.

    On a terminal: one line per phase, redrawn at most ten times a second. Elsewhere: one plain line when a phase
    begins, one every `every` seconds, and one when it ends, so that log files stay short. After a second a line also
    has the rate and, where the total is known, the time left. Both are of what was done since the phase's first call:
    what was there before, when work goes on where it stopped, took no time.
    """

    def __init__(self, stream: TextIO, every: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._terminal = bool(getattr(stream, "isatty", lambda: False)())
        self._every = 0.1 if self._terminal else every
        self._phase: str | None = None
        self._began = 0.0
        self._first = 0
        self._drawn = 0.0
        self._last = (0, 0)
        self._finished = False

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = self._clock()
        if phase != self._phase:
            self._end_phase()
            self._phase, self._began, self._first, self._finished = phase, now, done, False
            self._draw(done, total, now)
        elif total and done >= total:
            if not self._finished:
                self._draw(done, total, now)
                self._finished = True
        elif now - self._drawn >= self._every:
            self._draw(done, total, now)
        self._last = (done, total)

    def close(self) -> None:
        """Ends the current phase's line."""
        self._end_phase()
        self._phase = None

    def _end_phase(self) -> None:
        if self._phase is None:
            return
        if not self._finished:
            self._draw(*self._last, self._clock())
        if self._terminal:
            self._write("\n")

    def _draw(self, done: int, total: int, now: float) -> None:
        self._drawn = now
        spent = now - self._began
        rate = (done - self._first) / spent if spent > 1 else 0.0
        speed = f", {_rate(rate)}" if rate > 0 else ""
        if total:
            share = min(done / total, 1.0)
            left = f", {_seconds((total - done) / rate)} left" if rate > 0 and share < 1 else ""
            text = f"{100 * share:3.0f}%  {done:,} / {total:,}  {_seconds(spent)}{speed}{left}"
        else:
            share, text = 0.0, f"{done:,}  {_seconds(spent)}{speed}"
        if self._terminal:
            filled = round(24 * share)
            bar = f"[{'=' * filled}{' ' * (24 - filled)}] " if total else ""
            self._write(f"\r\x1b[K{self._phase}  {bar}{text}")
        else:
            self._write(f"{self._phase}  {text}\n")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            pass  # a closed or full stream must not end the work


def _rate(value: float) -> str:
    return f"{value:,.0f} per second" if value >= 10 else f"{value:.2g} per second"


def _seconds(value: float) -> str:
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def stepping(callback: Callback | None, phase: str, total: int) -> Callable[[int], Any]:
    """A function of ``done`` that calls `callback` for a fixed phase and total, or does nothing."""
    return (lambda done: callback(phase, done, total)) if callback is not None else (lambda done: None)
