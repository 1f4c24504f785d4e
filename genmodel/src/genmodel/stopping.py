"""When a run ends before its last step: signals and time, agreed on by all processes."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from genmodel.distributed import World

_REASONS = ("", "time", "interrupted")


class Stop:
    """Collects reasons to stop.

    Args:
        max_seconds: time limit, counted from `began`; None is none.
        began: ``time.perf_counter()`` at the start.
    """

    def __init__(self, max_seconds: float | None, began: float) -> None:
        self._end = float("inf") if max_seconds is None else began + max_seconds
        self.interrupted = False

    def reason(self, world: World, step_seconds: float) -> str:
        """Why to stop: "time" where the next step would end after the limit, "interrupted" after a signal, else ""."""
        late = time.perf_counter() + step_seconds > self._end
        return _REASONS[world.any(2 if self.interrupted else int(late))]

    def signalled(self, number: int, frame: FrameType | None) -> None:
        """The first signal asks for a stop; the second one, impatient, interrupts."""
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True


@contextmanager
def watched(max_seconds: float | None, began: float) -> Iterator[Stop]:
    """A :class:`Stop` that SIGINT and SIGTERM reach while this lasts (in the main thread; elsewhere only time does)."""
    stop = Stop(max_seconds, began)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.signalled) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
