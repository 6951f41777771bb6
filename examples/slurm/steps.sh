#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-only
#SBATCH --requeue --open-mode=append --signal=TSTP@120
# With work before and after the program: the signal goes to the steps (no B:), as it would end this shell.
[ -e prepared ] || { ./prepare && touch prepared; }        # once, not in each run
srun ckpt --resume --truncate-files -z 10m -a TSTP --exit-status 85 -n job.ckpt ./sim args; rc=$?
[ $rc = 0 ] && ./evaluate                                  # only when ./sim has come to its end
exit $rc                                                   # 85: saved, to be requeued
