"""A forked child opens, builds, counts, samples and streams, whatever threads its parent had at that moment."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
import os, sys, threading
import numpy as np
import captree
from captree.testing import clip_like

rows = clip_like(20_000, 32, seed=0)
path = sys.argv[1] + "/a.captree"
caps = captree.Caps(rows[:50], 0.5)

def work(out):
    tree = captree.open(path)
    built = captree.build(rows[:3000], out=out)
    return tree.count(caps), tree.sample(caps, 3, seed=1), tree.nearest(rows[:5], 3).rows, len(built)

captree.build(rows, out=path)
expected = work(sys.argv[1] + "/parent.captree")
stream = captree.PairStream(captree.open(path), batch_size=8, seed=0)
first = next(iter(stream))

stop = threading.Event()
def busy():
    tree = captree.open(path)
    while not stop.is_set():
        tree.count(caps)
alive = [threading.Thread(target=busy) for _ in range(3)]
for thread in alive:
    thread.start()
for i in range(5):
    child = os.fork()
    if child == 0:
        found = work(sys.argv[1] + f"/child{i}.captree")
        again = next(iter(captree.PairStream(captree.open(path), batch_size=8, seed=0)))
        same = all(np.array_equal(a, b) for a, b in zip(expected, found)) and np.array_equal(first.rows, again.rows)
        os._exit(0 if same else 3)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
stop.set()
for thread in alive:
    thread.join()
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs a system with fork")
def test_a_child_works_as_its_parent_does(tmp_path):
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
