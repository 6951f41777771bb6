# SPDX-License-Identifier: LGPL-2.1-only
import os

import ckpt

old = ckpt.config(continues=True, name="module.ckpt")
assert not old["continues"], old
try:
    ckpt.config(asyncsig=9)
except ckpt.Error as error:
    assert error.errno == 22 and "SIGKILL" in str(error), error
else:
    raise AssertionError("SIGKILL was accepted")
out = open("out.txt", "w")
ckpt.on_preckpt(lambda: print("before", flush=True))
ckpt.on_postckpt(lambda: print("after", flush=True))
ckpt.on_restart(lambda: print("restart", flush=True))
with ckpt.held():
    pass
files = {f.fd: f for f in ckpt.fds()}
assert files[out.fileno()].path.endswith("/out.txt"), files
generation = ckpt.info().generation
result = ckpt.checkpoint()
assert ckpt.info().generation == generation + 1
assert ckpt.info().restarted == bool(result)
print("checkpoint gave", result, flush=True)
os._exit(0)
