// SPDX-License-Identifier: LGPL-2.1-only
// Mappings of which a half is protected otherwise for a while: when it is as the rest again, both are one, which mremap(2)
// makes longer. "check" has them so, makes each longer and looks at what is in it, and protects the halves again.
#include "subject.h"
#include <sys/mman.h>

enum { KINDS = 6, PAGE = 4096, LENGTH = 64 * PAGE, HALF = LENGTH / 2 };

static const struct {
  // Of the first half; whether that has content; what all was at first.
  int prot, filled, first;
} kinds[KINDS] = {
  {PROT_NONE, 1, PROT_READ | PROT_WRITE}, {PROT_NONE, 0, PROT_READ | PROT_WRITE}, {PROT_READ, 1, PROT_READ | PROT_WRITE},
  {PROT_READ, 0, PROT_READ | PROT_WRITE}, {PROT_NONE, 0, PROT_NONE},              {PROT_READ, 0, PROT_NONE},
};
static char *at[KINDS];

static void look(int i) {
  for (int byte = 0; byte < LENGTH; byte++)
    CHECK(at[i][byte] == (byte >= HALF || kinds[i].filled ? 'a' + i : 0), "kind %d, byte %d: %d", i, byte, at[i][byte]);
}

static void check(void) {
  for (int i = 0; i < KINDS; i++) {
    CHECK(!mprotect(at[i], HALF, PROT_READ | PROT_WRITE), "kind %d: %m", i);
    look(i);
    // Linux 6.17 moves several as one, but makes none longer.
    at[i] = mremap(at[i], LENGTH, LENGTH + PAGE, MREMAP_MAYMOVE);
    CHECK(at[i] != MAP_FAILED && !munmap(at[i] + LENGTH, PAGE), "kind %d: %m", i);
    // With nothing beside it that it could become one with.
    char *room = mmap(0, LENGTH + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(room != MAP_FAILED, "%m");
    at[i] = mremap(at[i], LENGTH, LENGTH, MREMAP_MAYMOVE | MREMAP_FIXED, room + PAGE);
    CHECK(at[i] == room + PAGE, "kind %d: %m", i);
    look(i);
    CHECK(!mprotect(at[i], HALF, kinds[i].prot), "%m");
  }
}

int main(void) {
  for (int i = 0; i < KINDS; i++) {
    char *room = mmap(0, LENGTH + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(room != MAP_FAILED, "%m");
    at[i] = mmap(room + PAGE, LENGTH, kinds[i].first, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(at[i] == room + PAGE && !mprotect(at[i] + HALF, HALF, PROT_READ | PROT_WRITE), "%m");
    memset(at[i] + HALF, 'a' + i, HALF);
    if (kinds[i].filled) memset(at[i], 'a' + i, HALF);
    CHECK(!mprotect(at[i], HALF, kinds[i].prot), "%m");
  }
  return obey(check);
}
