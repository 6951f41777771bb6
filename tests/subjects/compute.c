// SPDX-License-Identifier: LGPL-2.1-only
// A long computation with malloc, qsort and buffered output to the file "result".
#include "subject.h"

struct node { struct node *next; uint64_t key; double value; };

static int by_key(const void *a, const void *b) {
  uint64_t x = (*(struct node *const *)a)->key, y = (*(struct node *const *)b)->key;
  return x < y ? -1 : x > y;
}

int main(void) {
  static struct node *buckets[64], *sorted[4000];
  FILE *out = fopen("result", "w");
  CHECK(out, "result: %m");
  uint64_t seed = 12345;
  for (int step = 1; step <= 4500; step++) {
    int n = 0;
    for (int i = 0; i < 3000; i++) {
      struct node *node = malloc(sizeof *node + seed % 100);
      seed = seed * 6364136223846793005u + 1442695040888963407u;
      node->key = seed >> 20, node->value = (double)(seed >> 11) / 3;
      node->next = buckets[node->key % 64], buckets[node->key % 64] = node;
      sorted[n++] = node;
    }
    qsort(sorted, n, sizeof *sorted, by_key);
    double sum = 0;
    for (int i = 0; i < 64; i++)
      for (struct node *node = buckets[i], *next; node; node = next) {
        next = node->next;
        sum += node->value / (double)(node->key | 1);
        if (node->key % 16) node->key = 0;
      }
    for (int i = 0; i < 64; i++) buckets[i] = 0;
    fprintf(out, "%d %016llx %.17g\n", step, (unsigned long long)sorted[n / 2]->key, sum);
    fflush(out);
    for (int i = 0; i < n; i++) free(sorted[i]);
  }
  return fclose(out);
}
