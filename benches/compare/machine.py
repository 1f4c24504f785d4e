"""Where a record was made: machine, versions, commit."""

import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "captree",
    "numpy",
    "torch",
    "faiss-cpu",
    "scikit-learn",
    "scipy",
    "usearch",
    "threadpoolctl",
)


def describe() -> dict[str, Any]:
    """Processor, cores, memory, system."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def processor() -> str:
    """The processor's name, as exact as the system says it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of the peers that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def origin(program: str) -> dict[str, Any]:
    """What every record begins with; to be asked before anything is measured, since files may change meanwhile."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": describe(),
        "versions": versions(),
        "commit": commit(),
        "command": shlex.join(["python", "-m", program, *sys.argv[1:]]),
    }


def commit() -> str:
    """The short commit, with `-dirty` where tracked files differ from it."""
    asked = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=10"]
    ran = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return ran.stdout.strip() or "unknown"


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
