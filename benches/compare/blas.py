"""The OpenBLAS kernel that is best here: one that is older than the processor takes a kernel for lesser ones."""

import os
import subprocess
import sys

CANDIDATES = ("Haswell", "Zen", "SkylakeX", "Cooperlake", "SapphireRapids")
"""Kernels for float32 products, as OPENBLAS_CORETYPE names them; one that a processor cannot run ends the process."""

CLEARLY = 0.95
"""Another kernel than the one that OpenBLAS takes by itself has to take less than this part of its time."""

PRODUCTS = """
import time
import numpy as np
from threadpoolctl import threadpool_info

rows, centers = np.ones((16384, 768), np.float32), np.ones((768, 512), np.float32)
seconds = []
for _ in range(8):
    start = time.perf_counter()
    rows @ centers
    seconds.append(time.perf_counter() - start)
print(min(seconds), *(l["architecture"] for l in threadpool_info() if l["internal_api"] == "openblas"))
"""


def products(threads: int, kernel: str | None) -> tuple[float, str] | None:
    """Seconds of a product with this kernel (None: what numpy takes), and the kernel that it was; None if it failed."""
    variables = {**os.environ, "OPENBLAS_NUM_THREADS": str(threads)}
    if kernel:
        variables["OPENBLAS_CORETYPE"] = kernel
    ran = subprocess.run(
        [sys.executable, "-c", PRODUCTS], env=variables, capture_output=True, text=True, check=False, timeout=120
    )
    answer = ran.stdout.split()
    return (float(answer[0]), answer[1]) if ran.returncode == 0 and len(answer) > 1 else None


def fastest(threads: int) -> str | None:
    """The kernel to force on every OpenBLAS; None where numpy has none."""
    usual = products(threads, None)
    if usual is None:
        return None
    answers = [answer for kernel in CANDIDATES if (answer := products(threads, kernel))]
    seconds, kernel = min(answers, default=usual)
    return kernel if seconds < CLEARLY * usual[0] else usual[1]
