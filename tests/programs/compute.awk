# SPDX-License-Identifier: LGPL-2.1-only
# Associative arrays, string functions, floating point.
BEGIN {
  seed = 12345
  for (step = 1; step <= 400; step++) {
    sum = 0
    for (i = 0; i < 4000; i++) {
      seed = (seed * 16807) % 2147483647
      key = substr(seed "", 1, 3)
      count[key]++
      gsub(/7/, "x", key)
      sum += sin(seed) * length(key)
    }
    n = 0
    for (k in count) n += count[k]
    printf "%d %d %.9f %s\n", step, n, sum, toupper(key) > "result"
    fflush("result")
  }
}
