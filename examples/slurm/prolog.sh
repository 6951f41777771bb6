#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-only
# A prolog of slurm.conf (Prolog=/etc/slurm/prolog.d/ckpt.sh), run by root before the first step of a job on this node.
# Before a job of the partition "maintenance" it saves and ends all that runs under ckpt here. If something could not be
# saved it fails, and Slurm drains the node and requeues the maintenance job: nothing is lost.
[ "${SLURM_JOB_PARTITION:-}" = maintenance ] || exit 0
exec ckpt save --stop --all --jobs 4
