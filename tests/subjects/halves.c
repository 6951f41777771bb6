// SPDX-License-Identifier: LGPL-2.1-only
// A mapping of which one half is another by what the kernel was told of it, but while it is checked: it then moves as one
// (mremap(2)). "empty": that half is protected and empty; "advised": it has content, and children do not get it.
#include "subject.h"
#include <sys/mman.h>

enum { PAGE = 4096, STEP = 64 * PAGE };
static const size_t half = 64 << 20;
static unsigned char *at;
static unsigned generation;
static int is_advised;

static void part(int apart) {
  if (is_advised) CHECK(!madvise(at + half, half, apart ? MADV_DONTFORK : MADV_DOFORK), "%m");
  else CHECK(!mprotect(at + half, half, apart ? PROT_NONE : PROT_READ | PROT_WRITE), "%m");
}

static size_t filled(void) { return is_advised ? 2 * half : half; }

static void write_all(void) {
  generation++;
  for (size_t i = 0; i < filled(); i += STEP) fill(at + i, PAGE, generation + (unsigned)(i / STEP));
}

static void check(void) {
  part(0);
  unsigned char *larger = mremap(at, 2 * half, 3 * half, MREMAP_MAYMOVE);
  CHECK(larger != MAP_FAILED, "mremap: %m");
  at = larger;
  CHECK(mremap(at, 3 * half, 2 * half, 0) == at, "mremap: %m");
  for (size_t i = 0; i < filled(); i += STEP) {
    long byte = differs(at + i, PAGE, generation + (unsigned)(i / STEP));
    CHECK(byte < 0, "byte %ld of the page at %p", byte, at + i);
  }
  write_all();
  part(1);
}

int main(int argc, char **argv) {
  is_advised = argc > 1 && !strcmp(argv[1], "advised");
  at = mmap(0, 2 * half, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(at != MAP_FAILED, "%m");
  madvise(at, 2 * half, MADV_NOHUGEPAGE);
  write_all();
  part(1);
  return obey(check);
}
