"""A process that does one thing to a tree, for another one that disturbs it.

Run as a script, it imports captree once and then forks a child for each order that comes in: a child starts within
milliseconds, so that the moments of its life can be told apart.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DONE, FAILED, REFUSED, STOPPED = 0, 1, 3, 4
"""How a child ends: as it should, in an error that is no captree error, in one that is, by Ctrl-C."""

NOBODY = 65534
"""A user with no rights, for a parent that has them all."""


@dataclass(frozen=True)
class End:
    """How a child ended."""

    code: int
    """One of the codes above; the negative number of the signal that killed it."""
    text: str
    """The error's type and message."""

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Children:
    """Starts children, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._text = folder / f"error-{id(self)}.txt"
        command = [sys.executable, "-W", "ignore::DeprecationWarning", __file__]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()

    def start(self, name: str, path: Path, **how: Any) -> int:
        """Begins an operation, or another of the functions below; returns the process id."""
        self._text.unlink(missing_ok=True)
        assert self._server.stdin is not None
        order = {"name": name, "path": str(path), "text": str(self._text), **how}
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return int(self._line())

    def wait(self) -> End:
        """The end of the child that was started last."""
        assert self._server.stdin is not None
        self._server.stdin.write("null\n")
        self._server.stdin.flush()
        status = int(self._line())
        text = self._text.read_text() if self._text.exists() else ""
        assert os.waitstatus_to_exitcode(status) != FAILED, text
        return End(os.waitstatus_to_exitcode(status), text)

    def do(self, name: str, path: Path, **how: Any) -> End:
        self.start(name, path, **how)
        return self.wait()

    def close(self) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


def wait_for(file: Path) -> None:
    """Until a file is there."""
    end = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < end, f"{file} does not come"
        time.sleep(0.002)


# ---- in the child


def hold(path: Path, order: dict[str, Any]) -> None:
    """Compacts a tree, and stands still in the middle of it until the file `go` is there."""
    import captree

    def progress(phase: str, done: int, total: int) -> None:
        if (path / "LOCK").exists() and (path / "LOCK").read_text().startswith(f"process {os.getpid()} "):
            Path(order["held"]).touch()
            wait_for(Path(order["go"]))

    captree.open(path).compact(progress=progress)


def append_often(path: Path, order: dict[str, Any]) -> None:
    """Appends rows one by one, and tries again whenever another process is at it."""
    import captree
    from crash_operations import ROWS

    tree = captree.open(path)
    for row in range(order["start"], order["stop"]):
        while True:
            try:
                tree.append(ROWS[row : row + 1])
                break
            except captree.errors.TreeLockedError:
                time.sleep(0.001)


def read(path: Path, order: dict[str, Any]) -> None:
    """Opens a tree, then waits for the file `go` before it asks anything; writes the answers to a file."""
    import pickle

    import captree
    from crash_checks import answers

    tree = captree.open(path)
    pickled = Path(order["pickled"])
    (pickled.with_suffix(".part")).write_bytes(pickle.dumps(tree))
    (pickled.with_suffix(".part")).rename(pickled)
    wait_for(Path(order["go"]))
    tree.verify()
    Path(order["answers"]).write_bytes(pickle.dumps(answers(tree, order["seed"])))


def unpickle(path: Path, order: dict[str, Any]) -> None:
    """Opens the tree of a pickle; writes its answers to a file."""
    import pickle

    from crash_checks import answers

    tree = pickle.loads(Path(order["pickled"]).read_bytes())
    Path(order["answers"]).write_bytes(pickle.dumps(answers(tree, order["seed"])))


def only_read(path: Path, order: dict[str, Any]) -> None:
    """Opens and asks a tree; writes its answers to the file that is open already."""
    import pickle

    import captree
    from crash_checks import answers

    tree = captree.open(path)
    tree.verify()
    with os.fdopen(order["into"], "wb") as file:
        file.write(pickle.dumps(answers(tree, order["seed"])))


def perform(order: dict[str, Any]) -> None:
    """What a child does."""
    from crash_operations import OPERATIONS

    path = Path(order["path"])
    if order.get("most_bytes") is not None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["most_bytes"], resource.RLIM_INFINITY))
    if "into" in order:
        order["into"] = os.open(order["into"], os.O_WRONLY | os.O_CREAT)
    if order.get("without_rights") and os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    last: list[str] = []

    def progress(phase: str, done: int, total: int) -> None:
        if phase not in last:
            last.append(phase)
        if phase == order.get("stop_in"):
            os.kill(os.getpid(), signal.SIGINT)

    function = globals().get(order["name"].replace(" ", "_"))
    if order["name"] in OPERATIONS:
        OPERATIONS[order["name"]].run(path, progress)
    else:
        function(path, order)


def child(order: dict[str, Any]) -> int:
    import captree

    # Opened before rights are given up.
    with open(order["text"], "w") as text:  # noqa: PTH123
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            perform(order)
        except KeyboardInterrupt:
            return STOPPED
        except captree.CaptreeError as error:
            with contextlib.suppress(OSError):
                text.write(f"{type(error).__name__}: {error}")
            return REFUSED
        except BaseException:
            with contextlib.suppress(OSError):
                text.write(traceback.format_exc())
            return FAILED
    return DONE


def serve() -> None:
    import crash_checks  # noqa: F401
    import crash_operations  # noqa: F401

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("ready", flush=True)  # noqa: T201
    pid = 0
    for line in sys.stdin:
        order = json.loads(line)
        if order is None:
            # Not before: until then the number stands for this child, and for no other process.
            print(os.waitpid(pid, 0)[1], flush=True)  # noqa: T201
            continue
        pid = os.fork()
        if pid == 0:
            code = FAILED
            try:
                code = child(order)
            finally:
                os._exit(code)
        print(pid, flush=True)  # noqa: T201


if __name__ == "__main__":
    serve()
