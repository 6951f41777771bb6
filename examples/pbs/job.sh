#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-only
#PBS -r y -l walltime=4:00:00
# qsub job.sh. PBS sends TERM, and KILL after the queue's kill_delay. No status has a job queued again there; so each run
# queues the next one, which begins only if this one does not come to its end (0), and is deleted if it does.
cd "$PBS_O_WORKDIR" || exit
qsub -W depend=afternotok:"$PBS_JOBID" job.sh > /dev/null || exit
exec ckpt --resume --truncate-files -z 10m -a TERM --exit-status 85 -n job.ckpt ./sim args
