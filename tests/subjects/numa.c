// SPDX-License-Identifier: LGPL-2.1-only
// NUMA policies: two threads and five areas of memory have their own, one as what BLAS libraries set. On a kernel without
// NUMA there is nothing to check.
#include "subject.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { DEFAULT, PREFERRED, BIND, INTERLEAVE, LOCAL, STATIC = 1 << 15, ADDRESS = 2, SIZE = 1 << 16 };

static int known;
static char *areas[5];
static _Atomic int other;
static _Atomic unsigned long turns;

static int policy(void *at) {
  int mode = -1;
  unsigned long nodes[16] = {0};
  CHECK(!syscall(SYS_get_mempolicy, &mode, nodes, 1025, at, at ? ADDRESS : 0), "%m");
  int none = mode == DEFAULT || mode == LOCAL || mode == PREFERRED;
  CHECK(nodes[0] == (none ? 0 : 1), "mode %x, nodes %lx", mode, nodes[0]);
  return mode == PREFERRED ? LOCAL : mode;
}

static void *alone(void *unused) {
  unsigned long nodes[16] = {1};
  CHECK(!syscall(SYS_set_mempolicy, BIND, nodes, 1025), "%m");
  for (;; turns++) {
    other = policy(0);
    usleep(1000);
  }
  return unused;
}

static void check(void) {
  if (!known) return;
  CHECK(policy(0) == INTERLEAVE, "%x", policy(0));
  int wanted[] = {LOCAL, BIND | STATIC, DEFAULT, LOCAL, BIND};
  for (int i = 0; i < 5; i++) {
    CHECK(policy(areas[i]) == wanted[i], "area %d has %x", i, policy(areas[i]));
    CHECK(areas[i][SIZE - 1] == i, "area %d has %d", i, areas[i][SIZE - 1]);
  }
  for (unsigned long end = turns + 2; turns < end;) usleep(1000);
  CHECK(other == BIND, "%x", other);
}

int main(void) {
  unsigned long nodes[16] = {1};
  pthread_t thread;
  known = !syscall(SYS_set_mempolicy, INTERLEAVE, nodes, 1025);
  for (int i = 0; i < 5; i++) {
    int flags = MAP_ANONYMOUS | (i == 1 ? MAP_SHARED : MAP_PRIVATE);
    areas[i] = mmap(0, SIZE, PROT_READ | PROT_WRITE, flags, -1, 0);
    CHECK(areas[i] != MAP_FAILED, "%m");
    // Else they were one.
    CHECK(mmap(0, SIZE, PROT_NONE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0) != MAP_FAILED, "%m");
  }
  if (known) {
    CHECK(!syscall(SYS_mbind, areas[0], SIZE, PREFERRED, 0, 0, 0), "%m");
    CHECK(!syscall(SYS_mbind, areas[1], SIZE, BIND | STATIC, nodes, 1025, 0), "%m");
    CHECK(!syscall(SYS_mbind, areas[3], SIZE, LOCAL, 0, 0, 0), "%m");
    CHECK(!syscall(SYS_mbind, areas[4], SIZE, BIND, nodes, 1025, 0), "%m");
    CHECK(!madvise(areas[4], SIZE, MADV_DONTFORK), "%m");
    CHECK(!pthread_create(&thread, 0, alone, 0), "%m");
  }
  for (int i = 0; i < 5; i++) areas[i][SIZE - 1] = i;
  return obey(check);
}
