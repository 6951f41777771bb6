# Builtins only: arrays, arithmetic, functions, here-documents and here-strings (as files, not pipes: BASH_COMPAT).
BASH_COMPAT=5.0
exec 5>result
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
  read -r first rest <<< "${list[*]}"
  while read -r line; do text=${line^^}; done <<END
step $step of ${first:0:3}
END
  printf '%d %s %s %d\n' "$step" "${#seen[@]}" "$text" "${seen[k7]:-0}" >&5
done
