"""One peer in a process of its own: `python -m benches.compare.worker SPEC`; the result goes to the file SPEC names."""

import json
import sys
from pathlib import Path

from benches.compare.data import Problem
from benches.compare.measure import Limits, measure
from benches.compare.peers import registry


def kernels() -> list[dict[str, object]]:
    """What threadpoolctl says of the BLAS and OpenMP libraries that this process has loaded."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return []
    keys = ("internal_api", "version", "architecture", "threading_layer", "num_threads")
    return [{key: library[key] for key in keys if key in library} for library in threadpool_info()]


def main() -> None:
    """Measure the peer and write its result as JSON."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    peer = registry()[spec["peer"]](spec["threads"])
    limits = Limits(caps=spec["caps"], seconds=spec["seconds"], repeats=spec["repeats"])
    result = measure(peer, Problem(Path(spec["problem"])), spec["operations"], limits)
    Path(spec["result"]).write_text(json.dumps(result.as_dict() | {"libraries": kernels()}))


if __name__ == "__main__":
    main()
