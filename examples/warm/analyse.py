# SPDX-License-Identifier: LGPL-2.1-only
"""A program that loads much before it does little: started from its checkpoint it has loaded all."""

import os
import sys

import numpy

try:
    import h5py  # noqa: F401: loaded once, for all runs
except ImportError:
    h5py = None

try:
    import ckpt
except ImportError:
    ckpt = None

table = numpy.arange(1_000_000, dtype=float)  # what each run needs: a model, a catalogue

if ckpt and os.environ.get("WARM"):
    ckpt.ready()  # `ckpt warm` saves and ends the program here; each restart goes on here

# From here on sys.argv and os.environ are those of the run, as --args and --env say.
power = float(os.environ.get("POWER", "1"))
for word in sys.argv[1:]:
    print(os.getcwd(), word, numpy.sum(table[: int(word)] ** power))
