"""Records: what was measured, on which machine, with what."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import torch

RECORD = Path(__file__).parent / "record"


def machine() -> dict[str, Any]:
    """Processor or GPU, cores, load and versions."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": [round(x, 1) for x in os.getloadavg()],
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def commit() -> str:
    """The commit measured, marked when the sources differ from it."""
    here = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    dirty = bool(git("status", "--porcelain", "--untracked-files=no", "--", "src", "benches"))
    return git("rev-parse", "HEAD")[:10] + ("-dirty" if dirty else "")


COMMIT = commit()
"""At the start: a measurement takes minutes, and sources may move on meanwhile."""


def write_record(name: str, results: Any) -> Path:
    """Writes ``record/DATE-NAME.json`` and prints the results."""
    RECORD.mkdir(exist_ok=True)
    record = {
        "bench": name, "command": " ".join(["python", *map(str, [Path(sys.argv[0]).name, *sys.argv[1:]])]),
        "date": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()), "commit": COMMIT, "machine": machine(),
        "results": results,
    }  # fmt: skip
    path = RECORD / f"{time.strftime('%Y-%m-%d', time.gmtime())}-{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    print(f"written to {path}")
    return path


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and quartiles, rounded."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": round(middle, 4), "low": round(low, 4), "high": round(high, 4)}
