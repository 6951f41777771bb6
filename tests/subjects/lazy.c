// SPDX-License-Identifier: LGPL-2.1-only
// lazy [MIB [GENERATION]]: does with much memory, as soon as it goes on, all that is difficult while the memory is not there yet.
#include "subject.h"
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

enum { PAGE = 4096, PIECE = 2 << 20, WORDS = PAGE / 8 };
static uint64_t generation, *area[64], *robust_page;
static int areas;
static pthread_t holder;
static pthread_barrier_t held;

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

static uint64_t word(int number, size_t page) { return (number * 1000003ull + page) * 0x9E3779B97F4A7C15ull + generation; }

// Every page of a piece has a word of its own at both ends.
static void put(int number, uint64_t *p, size_t first, size_t pages) {
  for (size_t i = 0; i < pages; i++)
    p[i * WORDS] = p[i * WORDS + WORDS - 1] = word(number, first + i);
}

static void is(int number, const uint64_t *p, size_t first, size_t pages) {
  for (size_t i = 0; i < pages; i++) {
    CHECK(p[i * WORDS] == word(number, first + i), "area %d, page %zu: %lx", number, first + i, p[i * WORDS]);
    CHECK(p[i * WORDS + WORDS - 1] == word(number, first + i), "area %d, end of page %zu", number, first + i);
  }
}

static void zero(int number, const uint64_t *p, size_t pages) {
  for (size_t i = 0; i < pages; i++) CHECK(!p[i * WORDS] && !p[i * WORDS + WORDS - 1], "area %d, page %zu", number, i);
}

static void *map(size_t length) {
  void *p = mmap(0, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(p != MAP_FAILED, "mmap: %m");
  return p;
}

enum { ALL = PIECE / PAGE, QUARTER = ALL / 4 };
static uint64_t *at(uint64_t *p, size_t page) { return p + page * WORDS; }

static void forgets(int n, int advice) {
  uint64_t *p = area[n];
  CHECK(!madvise(at(p, QUARTER), QUARTER * PAGE, advice), "madvise %d: %m", advice);
  if (advice == MADV_DONTNEED) zero(n, at(p, QUARTER), QUARTER);
  for (size_t i = QUARTER; i < 2 * QUARTER; i++) {
    uint64_t seen = p[i * WORDS];
    CHECK(!seen || seen == word(n, i), "area %d, page %zu: %lx", n, i, seen);
  }
  is(n, p, 0, QUARTER);
  is(n, at(p, 2 * QUARTER), 2 * QUARTER, 2 * QUARTER);
}

static void moves(int n, int flags) {
  uint64_t *p = area[n];
  void *to = map(PIECE), *old = at(p, QUARTER);
  void *moved = mremap(old, QUARTER * PAGE, QUARTER * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | flags, to);
  CHECK(moved == to, "mremap: %m");
  is(n, moved, QUARTER, QUARTER);
  if (flags) zero(n, old, QUARTER);
  // And back, over whatever is there.
  CHECK(mremap(moved, QUARTER * PAGE, QUARTER * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, old) == old, "mremap: %m");
  is(n, p, 0, ALL);
  CHECK(!munmap((char *)to + QUARTER * PAGE, PIECE - QUARTER * PAGE), "munmap: %m");
}

static void grows_and_shrinks(int n) {
  uint64_t *p = mremap(area[n], PIECE, 2 * PIECE, MREMAP_MAYMOVE);
  CHECK(p != MAP_FAILED, "mremap: %m");
  zero(n, at(p, ALL), ALL);
  is(n, at(p, ALL / 2), ALL / 2, ALL / 2);
  void *to = map(2 * PIECE);
  // Shorter, and elsewhere, where something of another area follows.
  uint64_t *q = mremap(p, 2 * PIECE, PIECE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
  CHECK(q == to, "mremap: %m");
  is(n, q, 0, ALL);
  zero(n, at(q, ALL), ALL);
  CHECK(!munmap(at(q, ALL), PIECE), "munmap: %m");
  area[n] = q;
}

static void replaces(int n) {
  uint64_t *p = area[n];
  CHECK(!munmap(at(p, 1), PAGE), "munmap: %m");
  CHECK(mmap(at(p, 1), PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at(p, 1), "%m");
  CHECK(mmap(at(p, 3), 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at(p, 3), "%m");
  zero(n, at(p, 1), 1);
  zero(n, at(p, 3), 2);
  is(n, p, 0, 1);
  is(n, at(p, 2), 2, 1);
  is(n, at(p, 5), 5, ALL - 5);
}

static void protects(int n) {
  uint64_t *p = area[n];
  for (size_t i = 0; i < ALL; i += 7) CHECK(!mprotect(at(p, i), PAGE, i % 2 ? PROT_READ : PROT_NONE), "mprotect: %m");
  for (size_t i = 0; i < ALL; i += 7) CHECK(!mprotect(at(p, i), PAGE, PROT_READ | PROT_WRITE), "mprotect: %m");
  is(n, p, 0, ALL);
}

static void in_calls(int n) {
  uint64_t *p = area[n], copy[WORDS];
  int fds[2], file = memfd_create("lazy", 0);
  CHECK(file >= 0 && !pipe(fds), "%m");
  // Out of memory that is missing, and into it.
  CHECK(write(file, at(p, 1), 9 * PAGE) == 9 * PAGE, "write: %m");
  for (size_t i = 0; i < 9; i++) {
    CHECK(pread(file, copy, PAGE, i * PAGE) == PAGE, "pread: %m");
    is(n, copy, i + 1, 1);
  }
  put(n, copy, 100, 1);
  CHECK(pwrite(file, copy, PAGE, 0) == PAGE, "pwrite: %m");
  CHECK(pread(file, (char *)at(p, 99) + 4000, PAGE, 0) == PAGE, "pread: %m");
  memmove(at(p, 100), (char *)at(p, 99) + 4000, PAGE);
  put(n, at(p, 99), 99, 1);
  struct iovec gift = {at(p, 200), 4 * PAGE}, from = {at(p, 300), PAGE}, to = {copy, PAGE};
  CHECK(vmsplice(fds[1], &gift, 1, 0) == 4 * PAGE, "vmsplice: %m");
  for (size_t i = 0; i < 4; i++) {
    CHECK(read(fds[0], copy, PAGE) == PAGE, "read: %m");
    is(n, copy, 200 + i, 1);
  }
  CHECK(process_vm_readv(getpid(), &to, 1, &from, 1, 0) == PAGE, "process_vm_readv: %m");
  is(n, copy, 300, 1);
  CHECK(syscall(SYS_futex, at(p, 350), FUTEX_WAIT, 1u + (uint32_t)word(n, 350), 0, 0, 0) < 0 && errno == EAGAIN, "futex: %m");
  CHECK(syscall(SYS_futex, at(p, 350), FUTEX_WAKE_OP, 1, 1, at(p, 351), FUTEX_OP(FUTEX_OP_ADD, 0, FUTEX_OP_CMP_EQ, 0)) >= 0, "futex: %m");
  if (!mlock(at(p, 400), 8 * PAGE)) CHECK(!munlock(at(p, 400), 8 * PAGE), "munlock: %m");
  // MADV_POPULATE_WRITE
  CHECK(!madvise(at(p, 420), 8 * PAGE, 23) || errno == EINVAL, "madvise: %m");
  is(n, p, 0, ALL);
  close(file), close(fds[0]), close(fds[1]);
}

static void ended_well(pid_t child) {
  int status;
  CHECK(waitpid(child, &status, 0) == child, "wait: %m");
  CHECK(WIFEXITED(status) && !WEXITSTATUS(status), "a child ended with %#x", status);
}

// A child, and a child of that, have the same memory, and each its own of what is changed.
static void forks(int n, int m) {
  pid_t child = fork();
  CHECK(child >= 0, "fork: %m");
  if (!child) {
    CHECK(!munmap(at(area[n], 5), PAGE), "munmap: %m");
    pid_t grandchild = fork();
    if (!grandchild) {
      is(n, at(area[n], 6), 6, ALL - 6);
      is(m, area[m], 0, ALL);
      _exit(0);
    }
    put(m, area[m], 7, 3);
    is(n, area[n], 0, 5);
    ended_well(grandchild);
    _exit(0);
  }
  CHECK(!madvise(area[n], 5 * PAGE, MADV_DONTNEED), "madvise: %m");
  zero(n, area[n], 5);
  is(n, at(area[n], 5), 5, ALL - 5);
  is(m, area[m], 0, ALL);
  ended_well(child);
}

// MADV_WIPEONFORK and MADV_DONTFORK, said while it is missing.
static void forks_without(int n) {
  uint64_t *p = area[n];
  CHECK(!madvise(at(p, QUARTER), QUARTER * PAGE, MADV_WIPEONFORK), "madvise: %m");
  CHECK(!madvise(at(p, 3 * QUARTER), PAGE, MADV_DONTFORK), "madvise: %m");
  pid_t child = fork();
  if (!child) {
    zero(n, at(p, QUARTER), QUARTER);
    is(n, p, 0, QUARTER);
    is(n, at(p, 2 * QUARTER), 2 * QUARTER, QUARTER);
    _exit(0);
  }
  CHECK(!madvise(at(p, QUARTER), QUARTER * PAGE, MADV_KEEPONFORK), "madvise: %m");
  CHECK(!madvise(at(p, 3 * QUARTER), PAGE, MADV_DOFORK), "madvise: %m");
  is(n, p, 0, ALL);
  ended_well(child);
}

static void executes(void) {
  pid_t child = vfork();
  if (!child) execl("/bin/true", "true", (char *)0), _exit(127);
  ended_well(child);
  child = fork();
  if (!child) execl("/bin/true", "true", (char *)0), _exit(127);
  ended_well(child);
}

static uint64_t *own[8];

// Threads that move, forget and unmap what is theirs, some of it at addresses that another has just left.
static void *churn(void *number) {
  int n = (int)(intptr_t)number;
  uint64_t *p = own[n - areas];
  for (size_t i = 0; i < 8; i++) {
    uint64_t *part = at(p, i * ALL / 8), *moved = mremap(part, PAGE * (ALL / 8), PAGE * (ALL / 8), MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
    CHECK(moved != MAP_FAILED, "mremap: %m");
    is(n, moved, i * ALL / 8, ALL / 16);
    zero(n, part, 2);
    if (i % 3 == 0) {
      CHECK(!madvise(moved, PAGE, MADV_DONTNEED), "madvise: %m");
      zero(n, moved, 1);
    }
    if (i % 4 == 0) {
      pid_t child = fork();
      CHECK(child >= 0, "fork: %m");
      if (!child) {
        is(n, at(moved, 1), i * ALL / 8 + 1, ALL / 8 - 1);
        _exit(0);
      }
      is(n, at(moved, 1), i * ALL / 8 + 1, ALL / 8 - 1);
      ended_well(child);
    }
    is(n, at(moved, ALL / 16), i * ALL / 8 + ALL / 16, ALL / 16);
    CHECK(!munmap(moved, PAGE * (ALL / 8)), "munmap: %m");
  }
  CHECK(!munmap(p, PIECE), "munmap: %m");
  return 0;
}

// A thread ends while it holds a robust mutex on a page that nobody has touched since.
static void *hold(void *mutexes) {
  CHECK(!pthread_mutex_lock(mutexes), "lock");
  CHECK(!pthread_mutex_lock((void *)((char *)mutexes + PIECE / 2)), "lock");
  pthread_barrier_wait(&held);
  pthread_barrier_wait(&held);
  return 0;
}

static void is_robust(void) {
  pthread_barrier_wait(&held);
  CHECK(!pthread_join(holder, 0), "join");
  for (int i = 0; i < 2; i++) {
    pthread_mutex_t *mutex = (void *)((char *)robust_page + i * PIECE / 2);
    int result = pthread_mutex_lock(mutex);
    CHECK(result == EOWNERDEAD, "lock: %s", strerror(result));
    pthread_mutex_consistent(mutex);
    pthread_mutex_unlock(mutex);
  }
}

static void arm(void) {
  generation++;
  for (int n = 0; n < areas; n++) put(n, area[n], 0, ALL);
  for (int n = 0; n < 8; n++) put(areas + n, own[n] = map(PIECE), 0, ALL);
  CHECK(!pthread_create(&holder, 0, hold, robust_page), "thread");
  pthread_barrier_wait(&held);
}

// Moves it to and fro while it is brought, where nobody else maps anything.
static void dances(int n) {
  uint64_t *p = area[n], *aside = map(PIECE);
  for (int i = 0; i < 200; i++) {
    uint64_t *to = i % 2 ? p : aside, *from = i % 2 ? aside : p;
    CHECK(mremap(from, PIECE, PIECE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap: %m");
  }
  is(n, p, 0, ALL);
}

// One that comes first in one generation, and meets what nobody has touched, is the last of another.
static void does(int what) {
  switch (what) {
  case 0: is_robust(); return;
  case 1: forks_without(10); return;
  case 2: forks(0, 1); return;
  case 3: forgets(2, MADV_DONTNEED); return;
  case 4: forgets(3, MADV_FREE); return;
  case 5: moves(4, 0); return;
  case 6: moves(5, MREMAP_DONTUNMAP); return;
  case 7: grows_and_shrinks(6); return;
  case 8: replaces(7); return;
  case 9: protects(8); return;
  case 10: in_calls(9); return;
  case 11: executes(); return;
  }
}

static void check(void) {
  pthread_t threads[8];
  dances(11);
  dances(areas - 1);
  does(generation * 5 % 12);
  for (intptr_t n = 0; n < 8; n++) CHECK(!pthread_create(&threads[n], 0, churn, (void *)(areas + n)), "thread");
  for (int i = 1; i < 12; i++) does((generation * 5 + i) % 12);
  for (int n = 0; n < 8; n++) CHECK(!pthread_join(threads[n], 0), "join");
  for (int n = 12; n < areas - 1; n++) is(n, area[n], 0, ALL);
  arm();
}

int main(int argc, char **argv) {
  areas = (argc > 1 ? atoi(argv[1]) : 96) / 2;
  generation = argc > 2 ? atoi(argv[2]) : 0;
  CHECK(areas >= 12 && areas <= 64, "from 24 to 128 MiB");
  pthread_mutexattr_t robust;
  pthread_mutexattr_init(&robust);
  pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
  robust_page = map(PIECE);
  for (int i = 0; i < 2; i++) pthread_mutex_init((void *)((char *)robust_page + i * PIECE / 2), &robust);
  // So that it counts as much as other memory.
  put(99, (uint64_t *)((char *)robust_page + PAGE), 0, ALL / 4);
  pthread_barrier_init(&held, 0, 2);
  for (int n = 0; n < areas; n++) area[n] = map(PIECE);
  arm();
  return obey(check);
}
