# SPDX-License-Identifier: LGPL-2.1-only
import mmap
import os
import sys

import ckpt

generations = []
out = open("out.txt", "w")
out.write("before\n")
out.flush()
scratch = mmap.mmap(-1, 4 * mmap.PAGESIZE)
scratch.write(b"x" * len(scratch))


def redirect():
    generations.append(ckpt.info().generation)
    file = next(f for f in ckpt.fds() if f.fd == out.fileno())
    assert file.type == ckpt.FD_REGULAR and file.treatment == ckpt.FD_RESTORE
    file.path, file.mode, file.offset = "new.txt", file.mode | os.O_CREAT, 0


ckpt.on_restart(redirect)
address = ckpt.address_of(scratch)
ckpt.exclude(address, len(scratch))
ckpt.include(address, mmap.PAGESIZE)
for call in (lambda: ckpt.restart("missing.ckpt"), lambda: ckpt.checkpoint("no/such/x")):
    try:
        call()
    except ckpt.Error as error:
        assert error.errno == 2, error
    else:
        raise AssertionError("nothing was raised")
if sys.argv[1:] == ["restart"]:
    ckpt.config(continues=True)
for generation in (1, 2, 3):
    if not ckpt.checkpoint("files.ckpt"):
        ckpt.restart("files.ckpt")
    assert generations[-1] == generation, generations
    out.write("generation %d\n" % generation)
    out.flush()
    print(scratch[0], scratch[mmap.PAGESIZE], flush=True)
