# SPDX-License-Identifier: LGPL-2.1-only
# busybox sh: builtins, and at the end an applet, which it runs through /proc/self/exe.
exec >result
seed=12345
step=1
while [ $step -le 900 ]; do
  i=0
  while [ $i -lt 250 ]; do
    seed=$(( (seed * 1103515245 + 12345) % 2147483648 ))
    i=$(( i + 1 ))
  done
  case $seed in *[02468]) kind=even ;; *) kind=odd ;; esac
  printf '%s %s %s\n' $step $seed $kind
  step=$(( step + 1 ))
done
md5sum compute.sh
