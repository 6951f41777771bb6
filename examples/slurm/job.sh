#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-only
#SBATCH --requeue --open-mode=append --signal=B:TSTP@120
# slurm.conf: JobRequeue=1, RequeueExit=85. Two minutes before its time limit the job is saved, ends with 85 and is requeued.
exec ckpt --resume --truncate-files -z 10m -a TSTP --exit-status 85 -n job.ckpt ./sim args
