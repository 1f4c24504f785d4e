"""Makes what the benchmarks read, under target/bench-data/: `python -m benches.prepare [--quick]`.

For every data set a folder with its vectors, its caps and a captree tree, and for every size one JSON file with the
workloads, their files and their expected answers. Vectors and answers are kept between runs, trees are built anew.
"""

import argparse
import json
import shutil
from typing import Any

import numpy as np
from numpy.typing import NDArray

import captree
from benches import exact, workloads
from benches.workloads import Workload

Arrays = dict[str, NDArray[Any]]


def make_arrays(name: str, settings: dict[str, Any], size: str, fresh: bool = False) -> Arrays:
    """Vectors and caps of one data set; unless `fresh`, from its folder when they are there."""
    path = workloads.folder(name, size) / "arrays.npz"
    wanted = {entry: value for entry, value in settings.items() if entry != "digest"}
    key = json.dumps([wanted, workloads.KINDS, captree.__version__], sort_keys=True)
    if path.exists() and not fresh:
        with np.load(path) as kept:
            if str(kept["key"]) == key:
                return {entry: kept[entry] for entry in kept.files if entry != "key"}
    vectors = workloads.make_vectors(settings, size)
    tree = captree.build(vectors, seed=settings["seed"])
    drawn = captree.training_caps(tree, settings["drawn"][size], seed=settings["seed"])
    counts = exact.count(vectors, drawn.centers, drawn.max_cos_distance)
    arrays: Arrays = {"vectors": vectors}
    for kind, chosen in workloads.choose_caps(settings, size, counts, len(vectors)).items():
        arrays[f"{kind}.centers"] = drawn.centers[chosen]
        arrays[f"{kind}.bounds"] = drawn.max_cos_distance[chosen]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, key=np.array(key), **arrays)  # type: ignore[arg-type]  # the stub lets no ** through
    return arrays


def caps_of(workload: Workload, arrays: Arrays) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Centers and bounds that the workload asks with."""
    centers, bounds = arrays[f"{workload.caps}.centers"], arrays[f"{workload.caps}.bounds"]
    if workload.operation == "nearest":
        return centers[: workloads.NEAREST_QUERIES], bounds[: workloads.NEAREST_QUERIES]
    return centers, bounds


def prepare(size: str) -> None:
    """Write trees, caps and the list of workloads of one size."""
    listed, lines = workloads.read()
    arrays = {name: make_arrays(name, settings, size) for name, settings in listed["data"].items()}
    kept_path = workloads.DATA / f"{size}.json"
    kept = {line["name"]: line for line in json.loads(kept_path.read_text())} if kept_path.exists() else {}
    known = {}
    for name, parts in arrays.items():
        found = workloads.digest(*parts.values())
        known[name] = found
        if found != listed["data"][name]["digest"].get(size):
            print(f"{name} ({size}): other bits than where workloads.json was made, so its answers are computed here")
        folder = workloads.folder(name, size)
        for entry, array in parts.items():
            if entry != "vectors":
                np.save(folder / f"{entry}.npy", array)
        if (folder / "tree").exists():
            shutil.rmtree(folder / "tree")
        captree.build(parts["vectors"], out=folder / "tree", seed=listed["data"][name]["seed"])

    out = []
    for workload in lines:
        found = known[workload.data]
        centers, bounds = caps_of(workload, arrays[workload.data])
        if found == listed["data"][workload.data]["digest"].get(size) and size in workload.expected:
            expected = workload.expected[size]
        elif kept.get(workload.name, {}).get("digest") == found:
            expected = kept[workload.name]["expected"]
        else:
            expected = workloads.answer(workload, arrays[workload.data]["vectors"], centers, bounds)
        folder_name = workloads.folder(workload.data, size).name
        out.append(
            {
                "name": workload.name,
                "operation": workload.operation,
                "k": workload.k,
                "tree": f"{folder_name}/tree",
                "centers": f"{folder_name}/{workload.caps}.centers.npy",
                "bounds": f"{folder_name}/{workload.caps}.bounds.npy",
                "caps": len(centers),
                "digest": found,
                "expected": expected,
            }
        )
    kept_path.write_text(json.dumps(out, indent=1) + "\n")
    print(f"{len(out)} workloads in {workloads.DATA.parent.name}/{workloads.DATA.name}/{size}.json")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.prepare", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small data, to run the benchmarks as tests")
    prepare("quick" if parser.parse_args().quick else "full")


if __name__ == "__main__":
    main()
