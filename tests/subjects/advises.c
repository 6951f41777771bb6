// SPDX-License-Identifier: LGPL-2.1-only
// Memory whose advice about forks a thread changes all the time; what is in it never changes.
#include "subject.h"
#include <pthread.h>
#include <sys/mman.h>

enum { AREAS = 16, PAGES = 4, LENGTH = PAGES << 12 };
static unsigned char *areas[AREAS];

static void *advise(void *unused) {
  static const int advice[] = {MADV_DONTFORK, MADV_DOFORK, MADV_WIPEONFORK, MADV_KEEPONFORK};
  for (unsigned i = 0;; i++) madvise(areas[i / 4 % AREAS], LENGTH, advice[i % 4]);
  return unused;
}

static void check(void) {
  for (unsigned i = 0; i < AREAS; i++)
    for (unsigned at = 0; at < LENGTH; at++)
      CHECK(areas[i][at] == (unsigned char)(i + at * 7 + 1), "area %u at %u has %u", i, at, areas[i][at]);
}

int main(void) {
  for (unsigned i = 0; i < AREAS; i++) {
    // Nothing can be joined with its neighbours.
    unsigned char *all = mmap(NULL, LENGTH + 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(all != MAP_FAILED && !mprotect(all + 4096, LENGTH, PROT_READ | PROT_WRITE), "%m");
    areas[i] = all + 4096;
    for (unsigned at = 0; at < LENGTH; at++) areas[i][at] = (unsigned char)(i + at * 7 + 1);
  }
  pthread_t thread;
  CHECK(!pthread_create(&thread, 0, advise, 0), "%m");
  return obey(check);
}
