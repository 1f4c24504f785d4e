"""Computes the expected answers anew and writes them, with the digests of their data, into workloads.json.

Run it after a change of `clip_like`, of `training_caps` or of the list: `python -m benches.make_expected`.
"""

import json

import numpy as np

from benches import exact, prepare, workloads
from captree import testing


def main() -> None:
    listed, lines = workloads.read()
    for size in workloads.SIZES:
        for name, settings in listed["data"].items():
            arrays = prepare.make_arrays(name, settings, size, fresh=True)
            settings.setdefault("digest", {})[size] = workloads.digest(*arrays.values())
            if size == "quick":
                compare_with_oracle(name, arrays)
            for line, workload in zip(listed["workloads"], lines, strict=True):
                if workload.data == name:
                    centers, bounds = prepare.caps_of(workload, arrays)
                    expected = workloads.answer(workload, arrays["vectors"], centers, bounds)
                    line.setdefault("expected", {})[size] = expected
                    print(f"{size} {workload.name}: {expected}", flush=True)
    workloads.LIST.write_text(json.dumps(listed, indent=1) + "\n")


def compare_with_oracle(name: str, arrays: prepare.Arrays) -> None:
    """Two ways to the truth have to meet."""
    caps = arrays["all.centers"], arrays["all.bounds"]
    found = exact.search(arrays["vectors"], *caps)
    if not np.array_equal(np.concatenate(found), testing.oracle(arrays["vectors"], caps).rows):
        raise AssertionError(f"benches.exact and captree.testing.oracle differ on {name}")


if __name__ == "__main__":
    main()
