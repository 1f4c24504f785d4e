"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """Draws "phase  done / total  note" on a text stream (standard error).

    On a terminal one line, redrawn at most ten times a second; elsewhere a plain line when the phase begins, one every
    `every` seconds, and one at its end, so that log files stay short. Silent with ``enabled=False``. Use it as a
    context manager, so that an error too ends the line.
    """

    def __init__(
        self, phase: str, total: int, enabled: bool = True, every: float = 10.0, stream: TextIO | None = None
    ) -> None:
        self.phase, self.total, self.enabled = phase, total, enabled
        self._stream = sys.stderr if stream is None else stream
        self._terminal = bool(getattr(self._stream, "isatty", lambda: False)())
        self._every = 0.1 if self._terminal else every
        self._began = time.monotonic()
        self._drawn: float | None = None
        self._last = (0, "")
        self._start = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn is not None:
            self._draw(*self._last)
            if self._terminal:
                self._write("\n")

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` of the total are done; `note` is a few words more."""
        if not self.enabled:
            return
        self._last = (done, note)
        if self._drawn is None:
            self._start = done  # what an earlier run had done says nothing about the time left
        if self._drawn is None or time.monotonic() - self._drawn >= self._every:
            self._draw(done, note)

    def _draw(self, done: int, note: str) -> None:
        self._drawn = time.monotonic()
        spent = self._drawn - self._began
        share = min(1.0, done / self.total) if self.total else 1.0
        text = f"{100 * share:3.0f}%  {done:,} / {self.total:,}  {_clock(spent)}"
        if done > self._start and share < 1:
            text += f", {_clock(spent / (done - self._start) * (self.total - done))} left"
        text += f"  {note}" if note else ""
        if self._terminal:
            filled = round(24 * share)
            self._write(f"\r\x1b[K{self.phase}  [{'=' * filled}{' ' * (24 - filled)}] {text}")
        else:
            self._write(f"{self.phase}  {text}\n")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            pass  # a closed or full stream must not end the work


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
