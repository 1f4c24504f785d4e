"""Peers in turns, each in a process of its own: what else the machine does meets all of them alike."""

import json
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benches.compare.data import Group

Ask = Callable[..., dict[str, Any] | None]
"""Asks a worker, as `Worker.ask` does; None if it failed."""


class Failed(Exception):
    """A peer's process ended, or took too long; the message says which."""


@dataclass(frozen=True)
class Limits:
    """How long to measure: until each peer has run so many seconds, or so often; and seconds that it has in all."""

    seconds: float
    repeats: int
    timeout: float


@dataclass
class Worker:
    """A peer's process. It is stopped while it is not asked: threads that wait for work would take time from others."""

    name: str
    limits: Limits
    process: subprocess.Popen[str]
    errors: Path
    spent: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(cls, spec: dict[str, Any], folder: Path, variables: dict[str, str], limits: Limits) -> "Worker":
        name = spec["peer"]
        request, errors = folder / f"{name}.json", folder / f"{name}.txt"
        request.write_text(json.dumps(spec))
        command = [sys.executable, "-m", "benches.compare.worker", str(request)]
        with errors.open("w") as file:
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, env=variables, stdin=pipe, stdout=pipe, stderr=file, text=True)
        return cls(name, limits, process, errors)

    def ask(self, what: str, **request: Any) -> dict[str, Any]:
        """The reply to one request. Raises Failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        start = time.monotonic()
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps({"what": what, **request}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # The answer, which is none, says why.
        left = max(0.0, self.limits.timeout - self.spent)
        if not select.select([self.process.stdout], [], [], left)[0]:
            raise Failed(f"took longer than {self.limits.timeout:g} s")
        line = self.process.stdout.readline()
        self.spent += time.monotonic() - start
        if not line:
            message = (self.errors.read_text().strip().splitlines() or ["no message"])[-1]
            raise Failed(f"exit status {self.process.wait()}: {message}")
        self.process.send_signal(signal.SIGSTOP)
        reply: dict[str, Any] = json.loads(line)
        return reply

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def measure(
    workers: list[Worker], operations: list[str], groups: list[Group], limits: Limits
) -> tuple[list[dict[str, Any]], list[str]]:
    """The results of the peers that lasted, and what became of the others."""
    alive, lost = list(workers), []

    def ask(worker: Worker, what: str, **request: Any) -> dict[str, Any] | None:
        try:
            return worker.ask(what, **request)
        except Failed as reason:
            lost.append(f"{worker.name}: {reason}")
            alive.remove(worker)
            worker.end()
            return None

    for worker in workers:
        print(f"building {worker.name}", flush=True)
        if built := ask(worker, "build"):
            worker.result = {"peer": worker.name, **built["answer"], "timings": [], "samplers": [], "unsupported": {}}
    for operation in operations:
        print(f"measuring {operation}", flush=True)
        for group in groups:
            if operation.startswith("nearest") and group.name != "all":
                continue
            asked = [worker for worker in alive if operation not in worker.result["unsupported"]]
            for worker, entry in take_turns(asked, operation, group, limits, ask):
                worker.result["timings"].append(entry)
        if operation == "sample k=1":
            for worker in list(alive):
                if operation not in worker.result["unsupported"] and (reply := ask(worker, "samplers")):
                    worker.result["samplers"] = reply["answer"]
    for worker in list(alive):
        if reply := ask(worker, "libraries"):
            worker.result["libraries"] = reply["answer"]
    return [worker.result for worker in alive], lost


def take_turns(
    asked: list[Worker], operation: str, group: Group, limits: Limits, ask: Ask
) -> list[tuple[Worker, dict[str, Any]]]:
    """The measurements of one operation and group.

    All peers have the same number of runs: the shortest counts, and more runs are more chances of a quiet moment.
    """
    measured: list[tuple[Worker, dict[str, Any]]] = []
    for worker in asked:
        entry = {"operation": operation, "group": group.name, "share": group.share, "runs": 0, "spent": 0.0}
        measured.append((worker, entry))
    for turn in range(limits.repeats):
        for worker, entry in list(measured):
            reply = ask(worker, "run", operation=operation, group=group.name, judged=turn == 0)
            if reply is None or "unsupported" in reply:
                if reply:
                    worker.result["unsupported"][operation] = reply["unsupported"]
                measured.remove((worker, entry))
            else:
                add(entry, reply["answer"])
        if all(entry["spent"] >= limits.seconds for _, entry in measured):
            break
    return measured


def add(entry: dict[str, Any], answer: dict[str, Any]) -> None:
    """Adds one run; the shortest is what the code takes when nothing else disturbs it."""
    seconds = answer["seconds"]
    best = min(entry.get("seconds", seconds), seconds)
    entry |= {"seconds": best, "runs": entry["runs"] + 1, "spent": entry["spent"] + answer["spent"]}
    entry |= {"caps": answer["caps"], "per_second": answer["caps"] / best}
    entry.setdefault("judged", answer["judged"])
