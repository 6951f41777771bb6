// SPDX-License-Identifier: LGPL-2.1-only
// Two pages, each with a protection key: one cannot be written, one cannot be touched. Another key no memory has, and one was
// given back.
#include "subject.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

static volatile unsigned char *page[2];
static int key[2], spare, freed;
static sigjmp_buf after;

static void on_fault(int number, siginfo_t *info, void *context) {
  (void)number, (void)context;
  siglongjmp(after, info->si_code == SEGV_PKUERR ? (int)info->si_pkey : -1);
}

// The key that forbids an access; 0: none.
static int forbidden(volatile unsigned char *byte, int write) {
  int by = sigsetjmp(after, 1);
  if (!by) {
    if (write) *byte = 9;
    else (void)*byte;
  }
  return by;
}

// A handler that is left by a jump leaves other rights behind.
static void arm(void) {
  CHECK(!pkey_set(key[0], PKEY_DISABLE_WRITE) && !pkey_set(key[1], PKEY_DISABLE_ACCESS), "%m");
  CHECK(!pkey_set(spare, PKEY_DISABLE_WRITE), "%m");
}

static void check(void) {
  for (int i = 0; i < 2; i++) {
    arm();
    CHECK(forbidden(page[i], 1) == key[i], "a store into page %d", i);
    arm();
    CHECK(forbidden(page[i], 0) == (i ? key[i] : 0), "a load from page %d", i);
    pkey_set(key[i], 0);
    CHECK(*page[i] == 7 + i, "page %d: %d", i, *page[i]);
  }
  arm();
}

// The rights themselves, which no fault has touched since the last check.
static void look(void) {
  CHECK(pkey_get(key[0]) == PKEY_DISABLE_WRITE && pkey_get(key[1]) == PKEY_DISABLE_ACCESS, "%d %d",
        pkey_get(key[0]), pkey_get(key[1]));
  CHECK(pkey_get(spare) == PKEY_DISABLE_WRITE && pkey_free(freed) == -1, "%d", pkey_get(spare));
  void *some = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(pkey_mprotect(some, 4096, PROT_READ, freed) == -1, "key %d is allocated", freed);
  CHECK(!pkey_mprotect(some, 4096, PROT_READ, spare) && !munmap(some, 4096), "%m");
  check();
}

int main(void) {
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
  sigaction(SIGSEGV, &action, 0);
  // This has a key, too, but the kernel's.
  mmap(0, 4096, PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (int i = 0; i < 2; i++) {
    page[i] = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *page[i] = 7 + i;
    key[i] = pkey_alloc(0, 0);
    CHECK(key[i] > 0, "%m");
    CHECK(!pkey_mprotect((void *)page[i], 4096, PROT_READ | PROT_WRITE, key[i]), "%m");
  }
  freed = pkey_alloc(0, 0);
  spare = pkey_alloc(0, PKEY_DISABLE_WRITE);
  CHECK(freed > 0 && spare > 0 && !pkey_free(freed), "%m");
  check();
  return obey(look);
}
