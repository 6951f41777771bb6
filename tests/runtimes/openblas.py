# SPDX-License-Identifier: LGPL-2.1-only
# Products and decompositions by OpenBLAS with two threads of its own.
import os
import sys

os.environ["OPENBLAS_NUM_THREADS"] = "2"
sys.path.insert(0, "python")
import numpy as np

threads = len(os.listdir("/proc/self/task"))
assert threads >= 2, f"{threads} threads: OpenBLAS has made none"
generator = np.random.default_rng(7)
matrix = generator.random((300, 300)) / 300
state = np.eye(300)
for step in range(90):
    state = state @ matrix + np.eye(300)
    solved = np.linalg.solve(state, matrix) if step % 10 == 0 else state
    print(step, f"{state.sum():.6f} {solved.trace():.6f}", flush=True)
