// SPDX-License-Identifier: LGPL-2.1-only
// Every kind of private anonymous memory; each check also changes it in the ways that betray a wrong restore.
#include "subject.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { PAGE = 4096, AREA = 64 * PAGE };
static const size_t TIB = (size_t)1 << 40;
static unsigned generation;
static unsigned char *heap, *chunk, *area, *dropped, *grown, *reserved, *island, *sealed, *hole, *top;
static size_t grown_size;
static int (*machine_code)(void);
static sigjmp_buf back;
static volatile int fault_code;

static unsigned char *map(size_t length, int protection, int flags) {
  void *p = mmap(0, length, protection, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  CHECK(p != MAP_FAILED, "mmap: %m");
  return p;
}

// musl's sbrk refuses to grow; glibc's keeps the break in mind, so that the bare system call would mislead it.
static unsigned char *grow_heap(void) {
#ifdef __GLIBC__
  unsigned char *old = sbrk(AREA);
  CHECK(old != (void *)-1, "the heap does not grow: %m");
#else
  unsigned char *old = (void *)syscall(SYS_brk, 0);
  CHECK((void *)syscall(SYS_brk, old + AREA) == old + AREA, "the heap does not grow");
#endif
  return old;
}

static void on_fault(int number, siginfo_t *siginfo, void *ucontext) {
  (void)number, (void)ucontext;
  fault_code = siginfo->si_code;
  siglongjmp(back, 1);
}

static int faults_with(volatile unsigned char *p) {
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO}, old;
  sigaction(SIGSEGV, &action, &old);
  fault_code = 0;
  if (!sigsetjmp(back, 1)) *p = 1;
  sigaction(SIGSEGV, &old, 0);
  return fault_code;
}

// 256 frames of 16 KiB: far below what the stack has reached before.
static unsigned deep(unsigned frames) {
  volatile unsigned char frame[16384];
  frame[0] = frames, frame[sizeof frame - 1] = 1;
  return frames ? deep(frames - 1) + frame[sizeof frame - 1] : 0;
}

static void arm(void) {
  generation++;
  fill(heap, AREA, generation), fill(chunk, AREA, generation);
  fill(area, AREA, generation), fill(dropped, AREA, generation);
  fill(grown, PAGE, generation), fill(island, PAGE, generation);
  mprotect(sealed, PAGE, PROT_READ | PROT_WRITE);
  fill(sealed, PAGE, generation);
  mprotect(sealed, PAGE, PROT_READ);
}

static void check(void) {
  CHECK(differs(heap, AREA, generation) < 0, "brk heap");
  CHECK(differs(chunk, AREA, generation) < 0, "malloc");
  CHECK(differs(area, AREA, generation) < 0, "mmap");
  CHECK(differs(grown, PAGE, generation) < 0, "mremapped area");
  CHECK(differs(island, PAGE, generation) < 0, "page in a reservation");
  CHECK(differs(sealed, PAGE, generation) < 0, "read-only page");
  CHECK(differs(dropped, AREA, generation) < 0, "area before MADV_DONTNEED");

  unsigned char *more = grow_heap();
  CHECK(more == top, "the heap grew at %p instead of %p", more, top);
  CHECK(not_zero(more, AREA) < 0, "grown heap is not zero");
  fill(more, AREA, generation);
  top += AREA;

  CHECK(!madvise(dropped, AREA, MADV_DONTNEED), "%m");
  CHECK(not_zero(dropped, AREA) < 0, "old bytes came back after MADV_DONTNEED");

  grown = mremap(grown, grown_size, grown_size + AREA, MREMAP_MAYMOVE);
  CHECK(grown != MAP_FAILED, "mremap: %m");
  CHECK(not_zero(grown + grown_size, AREA) < 0, "mremap grew into foreign bytes");
  grown_size += AREA;

  CHECK(faults_with(sealed) == SEGV_ACCERR, "a read-only page took a store");
  CHECK(faults_with(reserved + TIB - 1) == SEGV_ACCERR, "the reservation's end is gone");
  CHECK(faults_with(hole) == SEGV_MAPERR, "an unmapped page is mapped");
  CHECK(machine_code() == 42, "machine code");
  CHECK(deep(256) == 256, "deep recursion");
  arm();
}

int main(void) {
  static const unsigned char code[] = {0xb8, 42, 0, 0, 0, 0xc3};
  chunk = malloc(AREA);
  area = map(AREA, PROT_READ | PROT_WRITE, 0);
  dropped = map(AREA, PROT_READ | PROT_WRITE, 0);
  grown = map(grown_size = PAGE, PROT_READ | PROT_WRITE, 0);
  reserved = map(TIB, PROT_NONE, MAP_NORESERVE);
  island = reserved + TIB / 2;
  CHECK(!mprotect(island, PAGE, PROT_READ | PROT_WRITE), "%m");
  sealed = map(PAGE, PROT_READ | PROT_WRITE, 0);
  unsigned char *text = map(PAGE, PROT_READ | PROT_WRITE, 0);
  memcpy(text, code, sizeof code);
  mprotect(text, PAGE, PROT_READ | PROT_EXEC);
  machine_code = (int (*)(void))text;
  heap = grow_heap();
  top = heap + AREA;
  unsigned char *between = map(3 * PAGE, PROT_READ, 0);
  hole = between + PAGE;
  munmap(hole, PAGE);      // last, or another mapping takes the place
  arm();
  return obey(check);
}
