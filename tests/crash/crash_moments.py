"""Moments in the life of another process: after so much time, or when it has changed so many files."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_CREATE, _MOVED, _CLOSED, _DELETE, _IS_FOLDER = 0x100, 0xC0, 0x8, 0x200, 0x40000000
"""Events of Linux's inotify: a file or folder was made, renamed, closed after writing, removed."""

LAST = 25
"""With about so many changes of files a command ends. The system may tell of two changes at once, so that their number
is not the same each time.
"""

SEES_FILES = sys.platform == "linux"
"""Elsewhere moments are told by time alone."""


class Watch:
    """Counts the changes below a folder as they happen; folders that come are watched too."""

    def __init__(self, folder: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._queue = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._queue >= 0, os.strerror(ctypes.get_errno())
        self._folders: dict[int, Path] = {}
        self.count = 0
        self._add(folder)

    def _add(self, folder: Path) -> None:
        number = self._libc.inotify_add_watch(self._queue, os.fsencode(folder), _CREATE | _MOVED | _CLOSED | _DELETE)
        if number >= 0:  # otherwise it is gone already
            self._folders[number] = folder
            for inner in _folders_in(folder):
                self._add(inner)

    def wait(self, seconds: float) -> None:
        """Until something happens, or for so long."""
        if not select.select([self._queue], [], [], seconds)[0]:
            return
        data = os.read(self._queue, 1 << 16)
        at = 0
        while at < len(data):
            number, mask, _, size = struct.unpack_from("iIII", data, at)
            name = data[at + 16 : at + 16 + size].rstrip(b"\0")
            at += 16 + size
            self.count += 1
            if mask & _IS_FOLDER and mask & (_CREATE | _MOVED) and number in self._folders:
                self._add(self._folders[number] / os.fsdecode(name))

    def close(self) -> None:
        os.close(self._queue)


def _folders_in(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if entry.is_dir()]
    except OSError:
        return []


@dataclass(frozen=True)
class Life:
    """How long an operation takes when nothing disturbs it."""

    seconds: float
    changes: int


@dataclass(frozen=True)
class Moment:
    """When to disturb it: `after` seconds after the change of files with this number; 0 stands for its start."""

    changes: int
    after: float

    def __str__(self) -> str:
        return f"{self.after * 1e3:.2f} ms after " + (
            f"change {self.changes} of files" if self.changes else "the start"
        )


def random_moment(life: Life, rng: np.random.Generator) -> Moment:
    """One third of them fall anywhere in time; one third close behind any change of files, and one behind one of the
    last ones, which make all others count: these take little of the time.
    """
    kind = rng.integers(3)
    if kind == 0 or not life.changes:
        return Moment(0, float(rng.uniform(0, life.seconds * 1.05)))
    first, last = 1 if kind == 1 else max(1, life.changes - LAST), max(1, life.changes - LAST // 5)
    return Moment(int(rng.integers(first, last + 1)), float(rng.choice([0.0, rng.uniform(0, 0.002)])))


def live(folder: Path, start: Callable[[], object], wait: Callable[[], object]) -> Life:
    """Measures something that changes files below a folder."""
    if not SEES_FILES:
        began = time.perf_counter()
        start()
        wait()
        return Life(time.perf_counter() - began, 0)
    watch, ended = Watch(folder), threading.Event()

    def look() -> None:
        seen = -1
        # As they come, since the folders among them must be watched in time; afterwards those that are left.
        while not ended.is_set() or seen != watch.count:
            seen = watch.count
            watch.wait(0.01)

    looking = threading.Thread(target=look)
    looking.start()
    began = time.perf_counter()
    start()
    wait()
    seconds = time.perf_counter() - began
    ended.set()
    looking.join()
    watch.close()
    return Life(seconds, watch.count)


def at(folder: Path, moment: Moment, life: Life, start: Callable[[], int], act: Callable[[int], object]) -> None:
    """Starts a process, and acts on it at a moment of its life; if it changes fewer files, after twice its time."""
    watch = Watch(folder) if moment.changes else None
    began = time.perf_counter()
    process = start()
    if watch is not None:
        last = began + 2 * life.seconds + 0.05
        while watch.count < moment.changes and time.perf_counter() < last:
            watch.wait(max(last - time.perf_counter(), 0.0))
        watch.close()
        began = time.perf_counter()
    # A process that sleeps wakes up too late.
    while time.perf_counter() < began + moment.after:
        left = began + moment.after - time.perf_counter()
        time.sleep(max(left - 0.002, 0.0) if left > 0.004 else 0.0)
    act(process)
