// SPDX-License-Identifier: LGPL-2.1-only
// addresses high|low|reserved: memory where, or in amounts that, not every machine allows: above 128 TiB, in the second page,
// or 16 GiB of which little is used.
#include "subject.h"
#include <sys/mman.h>

static unsigned char *place;
static size_t size = 8192;

static void check(void) {
  CHECK(differs(place, 8192, 1) < 0, "the first bytes");
  CHECK(differs(place + size - 4096, 4096, 1) < 0 || size == 8192, "the last bytes");
  CHECK(size == 8192 || not_zero(place + size / 2, 8192) < 0, "the bytes between");
}

int main(int argc, char **argv) {
  CHECK(argc == 2, "usage: addresses high|low|reserved");
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void *at = 0;
  if (!strcmp(argv[1], "high")) at = (void *)(1ul << 48);
  if (!strcmp(argv[1], "low")) at = (void *)4096;
  if (!strcmp(argv[1], "reserved")) size = 16ul << 30;
  place = mmap(at, size, PROT_READ | PROT_WRITE, flags | (at ? MAP_FIXED : 0), -1, 0);
  CHECK(place != MAP_FAILED && (!at || place == at), "%p: %m", at);
  fill(place, 8192, 1);
  if (size > 8192) fill(place + size - 4096, 4096, 1);
  return obey(check);
}
