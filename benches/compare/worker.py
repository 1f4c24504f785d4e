"""One peer in a process of its own: `python -m benches.compare.worker SPEC` builds its index, then answers requests.

Requests and answers are lines of JSON, on the standard input and output.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from benches.compare import quality
from benches.compare.data import Problem
from benches.compare.measure import build, run
from benches.compare.peers import Unsupported, registry


def kernels() -> list[dict[str, object]]:
    """What threadpoolctl says of the BLAS and OpenMP libraries that this process has loaded."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return []
    keys = ("internal_api", "version", "architecture", "threading_layer", "num_threads")
    return [{key: library[key] for key in keys if key in library} for library in threadpool_info()]


def main() -> None:
    """Build, then answer until the input ends."""
    # What libraries print goes elsewhere.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    spec = json.loads(Path(sys.argv[1]).read_text())
    peer, problem = registry()[spec["peer"]](spec["threads"]), Problem(Path(spec["problem"]))
    groups = {group.name: group for group in problem.groups(spec["caps"])}

    def answer(request: dict[str, Any]) -> Any:
        if request["what"] == "build":
            return build(peer, problem)
        if request["what"] == "samplers":
            return quality.samplers(peer, problem)
        if request["what"] == "libraries":
            return kernels()
        return run(peer, problem, request["operation"], groups[request["group"]], request["judged"])

    for line in sys.stdin:
        try:
            reply = {"answer": answer(json.loads(line))}
        except Unsupported as reason:
            reply = {"unsupported": str(reason)}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
