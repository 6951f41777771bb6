// SPDX-License-Identifier: LGPL-2.1-only
// Two large mappings: at each check one is mapped anew, where it was, with other content; of the other a part changes.
#include "subject.h"
#include <sys/mman.h>

enum { PAGE = 4096, STEP = 16 * PAGE };
static const size_t lengths[2] = {64 << 20, 80 << 20};
static unsigned char *at[2];
static unsigned generation, parts[16];

static void map(int which) {
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | (at[which] ? MAP_FIXED : 0);
  at[which] = mmap(at[which], lengths[which], PROT_READ | PROT_WRITE, flags, -1, 0);
  CHECK(at[which] != MAP_FAILED, "%m");
  madvise(at[which], lengths[which], MADV_NOHUGEPAGE);
}

static unsigned of(int which, size_t i) { return which ? parts[i / STEP % 16] : generation; }

static void write_all(int which, unsigned part) {
  for (size_t i = 0; i < lengths[which]; i += STEP)
    if (part == 16 || i / STEP % 16 == part) fill(at[which] + i, PAGE, of(which, i));
}

static void check(void) {
  for (int which = 0; which < 2; which++)
    for (size_t i = 0; i < lengths[which]; i += STEP) {
      long byte = differs(at[which] + i, PAGE, of(which, i));
      CHECK(byte < 0, "mapping %d, byte %ld of the page at %p", which, byte, at[which] + i);
    }
  unsigned part = ++generation % 16;
  parts[part] = generation;
  map(0);
  write_all(0, 16);
  write_all(1, part);
}

int main(void) {
  for (int which = 0; which < 2; which++) {
    map(which);
    write_all(which, 16);
  }
  return obey(check);
}
