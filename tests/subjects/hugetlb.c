// SPDX-License-Identifier: LGPL-2.1-only
// hugetlb: huge pages of hugetlbfs without a file, of which it has touched two of four. Says "none" where there are none, and
// writes into the file "kind" what pages it has.
#include "subject.h"
#include <sys/mman.h>

enum { HUGE = 2 << 20, PAGES = 4 };

static unsigned char *area;
static unsigned generation = 1;

static int page_size(void) {
  char line[512];
  unsigned long start, size = 0;
  FILE *maps = fopen("/proc/self/smaps", "r");
  for (int inside = 0; maps && fgets(line, sizeof line, maps);) {
    if (sscanf(line, "%lx-%*x ", &start) == 1) inside = start == (unsigned long)area;
    if (inside) sscanf(line, "KernelPageSize: %lu", &size);
  }
  if (maps) fclose(maps);
  return (int)size;
}

static void check(void) {
  CHECK(differs(area, HUGE, generation) < 0 && differs(area + 2 * HUGE, HUGE, generation) < 0, "content");
  CHECK(not_zero(area + HUGE, 4096) < 0, "zeros");
  FILE *file = fopen("kind", "w");
  CHECK(file && fprintf(file, "%d", page_size()) > 0 && !fclose(file), "%m");
  generation++;
  fill(area, HUGE, generation), fill(area + 2 * HUGE, HUGE, generation);
}

int main(void) {
  area = mmap(0, PAGES * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
  if (area == MAP_FAILED) {
    say("none\n");
    return 0;
  }
  fill(area, HUGE, generation), fill(area + 2 * HUGE, HUGE, generation);
  return obey(check);
}
