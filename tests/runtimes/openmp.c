// SPDX-License-Identifier: LGPL-2.1-only
// OpenMP: parallel loops, reductions, tasks, critical sections and barriers; one line for each step.
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t tree(int depth, uint64_t x) {
  if (depth == 0) return x * 31 + 7;
  uint64_t a, b;
#pragma omp task shared(a)
  a = tree(depth - 1, x * 2 + 1);
#pragma omp task shared(b)
  b = tree(depth - 1, x * 3 + 1);
#pragma omp taskwait
  return a * 17 + b;
}

int main(void) {
  enum { N = 60000 };
  double *x = malloc(N * sizeof *x);
  uint64_t total = 0;
  omp_set_num_threads(4);
  for (int step = 0; step < 200; step++) {
    uint64_t sum = 0, tasks = 0, locked = 0;
    int threads = 0;
#pragma omp parallel for schedule(dynamic, 500) reduction(+ : sum)
    for (int i = 0; i < N; i++) {
      double y = 0.1 + i * 1e-6 + step * 1e-9;
      for (int k = 0; k < 20; k++) y = 3.7 * y * (1 - y);
      x[i] = y;
      sum += (uint64_t)(y * 1e12);
    }
#pragma omp parallel
    {
#pragma omp single
      {
        threads = omp_get_num_threads();
        tasks = tree(6, step);
      }
#pragma omp critical
      locked += 1;
#pragma omp barrier
    }
    total = total * 31 + sum + tasks + locked;
    printf("%d %lu %d\n", step, (unsigned long)total, threads);
    fflush(stdout);
  }
  free(x);
  return 0;
}
