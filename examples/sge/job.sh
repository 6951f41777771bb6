#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-only
#$ -cwd -S /bin/sh -r y -notify -l h_rt=4:00:00
# qsub job.sh. With -notify Grid Engine sends USR2 a while before it kills the job (the queue's notify, 60 s); status 99
# has it queued again.
exec ckpt --resume --truncate-files -z 10m -a USR2 --exit-status 99 -n job.ckpt ./sim args
