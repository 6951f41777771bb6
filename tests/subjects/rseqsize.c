// SPDX-License-Identifier: LGPL-2.1-only
// A registration for restartable sequences that is as large as this kernel can use (rseq(2), AT_RSEQ_FEATURE_SIZE); on any
// kernel the area tells the CPU. For a C library that registers none of its own (musl).
#include "subject.h"
#include <sys/auxv.h>
#include <sys/syscall.h>

enum { FEATURE_SIZE = 27, SIGNATURE = 0x53053053 };
static union {
  struct { uint32_t cpu_id_start, cpu_id; };
  char bytes[256];
} area __attribute__((aligned(256)));

static void check(void) {
  unsigned cpu, area_says;
  int tries = 100000;
  do {
    area_says = __atomic_load_n(&area.cpu_id, __ATOMIC_RELAXED);
    CHECK(!syscall(SYS_getcpu, &cpu, 0, 0), "%m");
  } while (area_says != cpu && --tries);
  CHECK(tries, "the area says processor %d, the kernel %u", (int)area_says, cpu);
}

int main(void) {
  unsigned long size = getauxval(FEATURE_SIZE);
  size = size <= 32 ? 32 : (size + 31) / 32 * 32;
  CHECK(size <= sizeof area, "%lu", size);
  CHECK(!syscall(SYS_rseq, &area, size, 0, SIGNATURE), "%lu bytes: %m", size);
  return obey(check);
}
