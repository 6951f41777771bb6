// SPDX-License-Identifier: LGPL-2.1-only
// Threads inside a restartable sequence at the checkpoint go to its abort handler, both in the original and in the
// restarted program. Without rseq (musl, old kernels) the threads register an area of their own.
#include "subject.h"
#include <pthread.h>
#include <stddef.h>
#include <sys/syscall.h>

enum { THREADS = 2, SIGNATURE = 0x53053053 };
struct section { uint32_t version, flags; uint64_t start, length, abort; } __attribute__((aligned(32)));
struct area { uint32_t cpu_start, cpu; uint64_t section; uint32_t flags, node, mm_cpu, pad; } __attribute__((aligned(32)));
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));
static __thread struct area mine;
static volatile unsigned long aborted[THREADS], inside[THREADS];
static volatile int leave;

static struct area *area(void) {
  if (&__rseq_offset && &__rseq_size && __rseq_size)
    return (void *)((char *)__builtin_thread_pointer() + __rseq_offset);
  CHECK(!syscall(SYS_rseq, &mine, sizeof mine, 0, SIGNATURE), "rseq: %m");
  return &mine;
}

// Spins inside the sequence until it is aborted or `leave` is set. The CPU cannot change inside: 2 if it did.
static int spin(struct area *area, volatile unsigned long *turns) {
  int result;
  __asm__ volatile(
      ".pushsection .data.rseq, \"aw\"\n\t"
      ".balign 32\n"
      "1: .long 0, 0\n\t"
      ".quad 2f, 3f - 2f, 4f\n\t"
      ".popsection\n\t"
      "leaq 1b(%%rip), %%rax\n\t"
      "movq %%rax, 8(%[area])\n"
      "2: movl 4(%[area]), %%eax\n"
      "6: incq (%[turns])\n\t"
      "movl $2, %[result]\n\t"
      "cmpl %%eax, 4(%[area])\n\t"
      "jne 5f\n\t"
      "cmpl $0, %[leave]\n\t"
      "je 6b\n"
      "3: movl $0, %[result]\n\t"
      "jmp 5f\n\t"
      ".byte 0x0f, 0xb9, 0x3d\n\t"
      ".long 0x53053053\n"
      "4: movl $1, %[result]\n"
      "5:\n"
      : [result] "=&r"(result)
      : [area] "r"(area), [turns] "r"(turns), [leave] "m"(leave)
      : "rax", "memory", "cc");
  return result;
}

static void *run(void *number) {
  long me = (long)number;
  struct area *area_here = area();
  while (!leave) {
    int result = spin(area_here, &inside[me]);
    CHECK(result < 2, "thread %ld went on inside its sequence on another CPU", me);
    aborted[me] += result;
  }
  return 0;
}

// The kernel ends the sequence of every thread that it preempts: it happens by itself where threads share a CPU, and a
// stop makes it happen at once.
static void check(void) {
  for (int i = 0; i < THREADS; i++) {
    unsigned long before = aborted[i], turns = inside[i];
    while (aborted[i] == before || inside[i] == turns) sched_yield();
  }
}

int main(void) {
  pthread_t threads[THREADS];
  for (long i = 0; i < THREADS; i++) CHECK(!pthread_create(&threads[i], 0, run, (void *)i), "%m");
  for (int i = 0; i < THREADS; i++)
    while (!inside[i]) sched_yield();
  int result = obey(check);
  leave = 1;
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], 0);
  return result;
}
