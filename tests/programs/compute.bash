# SPDX-License-Identifier: LGPL-2.1-only
# Builtins only: arrays, arithmetic, functions, expansions.
exec >result
declare -A seen
seed=12345

draw() { seed=$(( (seed * 1103515245 + 12345) % 2147483648 )); }

for (( step = 1; step <= 400; step++ )); do
  for (( i = 0; i < 150; i++ )); do
    draw
    key=k$(( seed % 97 ))
    seen[$key]=$(( ${seen[$key]:-0} + seed % 1000 ))
    list[i]=$seed
  done
  first=${list[0]} text="step $step of"
  text="${text^^} ${first:0:3}"
  printf '%d %s %s %d\n' "$step" "${#seen[@]}" "$text" "${seen[k7]:-0}"
done
