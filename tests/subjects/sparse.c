// SPDX-License-Identifier: LGPL-2.1-only
// sparse MIB: so many MiB of random bytes, eight times as many of touched zeros, and a large untouched area.
#include "subject.h"
#include <sys/mman.h>

static unsigned char *bytes, *zeros, *untouched;
static size_t size;

static unsigned char *map(size_t length) {
  void *p = mmap(0, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(p != MAP_FAILED, "%m");
  return p;
}

static void check(void) {
  CHECK(differs(bytes, size, 1) < 0, "bytes");
  CHECK(not_zero(zeros, 8 * size) < 0, "zeros");
  CHECK(not_zero(untouched + 64 * size - 4096, 4096) < 0, "untouched area");
}

int main(int argc, char **argv) {
  CHECK(argc == 2, "usage: sparse MIB");
  size = strtoul(argv[1], 0, 10) << 20;
  bytes = map(size), zeros = map(8 * size), untouched = map(64 * size);
  fill(bytes, size, 1);
  for (size_t i = 0; i < 8 * size; i += 4096) zeros[i] = 1;
  for (size_t i = 0; i < 8 * size; i += 4096) zeros[i] = 0;
  return obey(check);
}
