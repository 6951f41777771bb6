// SPDX-License-Identifier: LGPL-2.1-only
// What the one thread has in the kernel: FS and GS, rseq, robust list, the address that is cleared at its end, its ids.
#include "subject.h"
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

enum { ARCH_SET_GS = 0x1001, ARCH_GET_FS = 0x1003, ARCH_GET_GS = 0x1004 };
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));
static __thread unsigned long local = 1;
static unsigned long fs, gs[2] = {0x1122334455667788, 0};
static void *robust, *tid_address;
static size_t robust_size;

static void cpu_follows(void) {
  if (!&__rseq_offset || !&__rseq_size || !__rseq_size) return;
  volatile uint32_t *rseq = (void *)((char *)__builtin_thread_pointer() + __rseq_offset);
  cpu_set_t all;
  sched_getaffinity(0, sizeof all, &all);
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, &all)) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    CHECK(!sched_setaffinity(0, sizeof one, &one), "%m");
    CHECK(rseq[1] == (uint32_t)cpu, "rseq says CPU %d on CPU %d", (int)rseq[1], cpu);
  }
  sched_setaffinity(0, sizeof all, &all);
}

static void check(void) {
  unsigned long value = 0;
  CHECK(!syscall(SYS_arch_prctl, ARCH_GET_FS, &value) && value == fs, "FS %lx instead of %lx", value, fs);
  CHECK(!syscall(SYS_arch_prctl, ARCH_GET_GS, &value) && value == (unsigned long)gs, "GS %lx", value);
  __asm__ volatile("movq %%gs:0, %0" : "=r"(value));
  CHECK(value == gs[0], "%%gs:0 is %lx", value);
  CHECK(local == 0x1234, "thread-local variable %lx", local);
  void *head = 0, *address = 0;
  size_t size = 0;
  CHECK(!syscall(SYS_get_robust_list, 0, &head, &size), "%m");
  CHECK(head == robust && size == robust_size, "robust list %p %zu instead of %p %zu", head, size, robust, robust_size);
  if (tid_address)
    CHECK(!prctl(PR_GET_TID_ADDRESS, &address) && address == tid_address, "tid address %p", address);
  CHECK(getpid() == syscall(SYS_getpid) && syscall(SYS_gettid) == getpid(), "pid");
  cpu_follows();
  raise(SIGCONT);      // goes to gettid(): a stale thread id is an error
}

int main(void) {
  local = 0x1234;
  CHECK(!syscall(SYS_arch_prctl, ARCH_GET_FS, &fs), "%m");
  CHECK(!syscall(SYS_arch_prctl, ARCH_SET_GS, gs), "%m");
  CHECK(!syscall(SYS_get_robust_list, 0, &robust, &robust_size), "%m");
  if (prctl(PR_GET_TID_ADDRESS, &tid_address)) tid_address = 0;
  cpu_follows();
  return obey(check);
}
