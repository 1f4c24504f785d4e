"""A process that does one thing to a tree, for another one that disturbs it.

Run as a script, it imports captree once and then forks a child for each order that comes in: a child starts within
milliseconds, so that the moments of its life can be told apart.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from crash_checks import answers
from crash_operations import LARGE, LIMIT, OPERATIONS, ROWS

import captree

DONE, FAILED, REFUSED, STOPPED = 0, 1, 3, 4
"""How a child ends: as it should, in an error that is no captree error, in one that is, by Ctrl-C."""

NOBODY = 65534
"""A user with no rights, for a parent that has them all."""


@dataclass(frozen=True)
class End:
    """How a child ended."""

    code: int
    """One of the codes above; the negative number of the signal that killed it."""
    value: Any
    """What it found, or its error's type and message."""

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Children:
    """Starts children, one at a time."""

    def __init__(self) -> None:
        command = [sys.executable, "-W", "ignore::DeprecationWarning", __file__]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._orders, self._answers = self._server.stdin, self._server.stdout
        assert self._answers.readline() == "ready\n"

    def _ask(self, order: Any) -> Any:
        self._orders.write(json.dumps(order) + "\n")
        self._orders.flush()
        return json.loads(self._answers.readline())

    def start(self, name: str, path: Path, **how: Any) -> int:
        """Begins an operation, or another of the functions below; returns the process id."""
        return int(self._ask({"name": name, "path": str(path), **how}))

    def wait(self) -> End:
        """The end of the child that was started last."""
        status, value = self._ask(None)
        end = End(os.waitstatus_to_exitcode(status), pickle.loads(bytes.fromhex(value)) if value else None)
        assert end.code != FAILED, end.value
        return end

    def do(self, name: str, path: Path, **how: Any) -> End:
        self.start(name, path, **how)
        return self.wait()

    def close(self) -> None:
        self._orders.close()
        self._server.wait()
        self._answers.close()


def wait_for(file: Path) -> None:
    """Until a file is there."""
    end = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < end, f"{file} does not come"
        time.sleep(0.002)


# ---- in the child


class GivenUp(Exception):
    """What ends :func:`hold`."""


def hold_with(path: Path, held: Callable[[], object]) -> None:
    """Appends rows, and gives up in the middle of it, when one segment is written: the tree stays what it was."""

    def batches() -> Iterator[np.ndarray]:
        yield ROWS[3500:5500]
        held()
        raise GivenUp

    with contextlib.suppress(GivenUp):
        captree.open(path).append(batches(), memory_limit=LIMIT)


def hold(path: Path, order: dict[str, Any]) -> None:
    """Has the lock of a tree until the file `go` is there."""

    def held() -> None:
        Path(order["held"]).touch()
        wait_for(Path(order["go"]))

    hold_with(path, held)


def append_often(path: Path, order: dict[str, Any]) -> None:
    """Appends rows one by one, and tries again whenever another process is at it."""
    tree = captree.open(path)
    for row in range(order["start"], order["stop"]):
        while True:
            try:
                tree.append(ROWS[row : row + 1])
                break
            except captree.errors.TreeLockedError:
                time.sleep(0.001)


def delete_often(path: Path, order: dict[str, Any]) -> None:
    """Deletes rows one by one."""
    tree = captree.open(path)
    for row in range(order["start"], order["stop"]):
        tree.delete([row])


def replace_often(path: Path, order: dict[str, Any]) -> None:
    """Builds two trees of one shape in turn."""
    for start in order["starts"]:
        captree.build(ROWS[start : start + 3000], out=path, memory_limit=LIMIT)


def read_late(path: Path, order: dict[str, Any]) -> Any:
    """Opens a tree, then waits for the file `go` before it touches any of its files."""
    tree = captree.open(path)
    pickled = Path(order["pickled"])
    pickled.with_suffix(".part").write_bytes(pickle.dumps(tree))
    pickled.with_suffix(".part").rename(pickled)
    wait_for(Path(order["go"]))
    tree.verify()
    return answers(tree, order["seed"])


def unpickle(path: Path, order: dict[str, Any]) -> Any:
    """Opens the tree of a pickle."""
    tree = pickle.loads(Path(order["pickled"]).read_bytes())
    tree.verify()
    return answers(tree, order["seed"])


def read(path: Path, order: dict[str, Any]) -> Any:
    """Opens and asks a tree."""
    tree = captree.open(path)
    tree.verify()
    return answers(tree, order["seed"])


def state_of(path: Path) -> bytes | None:
    """What tells one state of a tree from another."""
    try:
        return (path / "CURRENT").read_bytes()
    except OSError:
        return None


def perform(order: dict[str, Any]) -> Any:
    """What a child does."""
    path = Path(order["path"])
    if "most_bytes" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["most_bytes"], resource.RLIM_INFINITY))
    if order.get("without_rights") and os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    begun = state_of(path)
    reports: list[str] = []

    def progress(phase: str, done: int, total: int) -> None:
        # The last report comes when all is done.
        if state_of(path) == begun:
            reports.append(phase)
            if phase == order.get("stop_in"):
                os.kill(os.getpid(), signal.SIGINT)

    operation = {**OPERATIONS, **LARGE}.get(order["name"])
    if operation is not None:
        operation.run(path, progress)
        return reports
    return globals()[order["name"]](path, order)


def child(order: dict[str, Any]) -> tuple[int, Any]:

    # A write beyond the limit of file sizes is to fail like one on a full disk.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return DONE, perform(order)
    except KeyboardInterrupt:
        return STOPPED, None
    except captree.CaptreeError as error:
        return REFUSED, f"{type(error).__name__}: {error}"
    except BaseException:
        return FAILED, traceback.format_exc()


def serve() -> None:
    """Forks a child for each order; asked for nothing, waits for the last one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("ready", flush=True)  # noqa: T201
    pid = value = 0
    for line in sys.stdin:
        order = json.loads(line)
        if order is None:
            with os.fdopen(value, "rb") as file:
                text = file.read().hex()
            # Not before: until then the number stands for this child, and for no other process.
            answer: Any = os.waitpid(pid, 0)[1], text
        else:
            value, into = os.pipe()
            pid = answer = os.fork()
            if pid == 0:
                code = FAILED
                try:
                    code, found = child(order)
                    with os.fdopen(into, "wb") as file:
                        file.write(pickle.dumps(found))
                finally:
                    os._exit(code)
            os.close(into)
        print(json.dumps(answer), flush=True)  # noqa: T201


if __name__ == "__main__":
    serve()
