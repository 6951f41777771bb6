#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-only
#BSUB -W 240 -wa TSTP -wt 2 -r -Q 85
# bsub < job.sh. Two minutes before its run limit LSF sends TSTP; status 85 has it queued again, as has a lost host (-r).
exec ckpt --resume --truncate-files -z 10m -a TSTP --exit-status 85 -n job.ckpt ./sim args
