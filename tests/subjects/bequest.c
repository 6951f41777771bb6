// SPDX-License-Identifier: LGPL-2.1-only
// bequest FILE       each of many threads, the main one, too, holds a robust mutex that lies in a file; 64 MiB of memory beside them.
// bequest FILE left  whoever locks these is told that their owners are gone.
#include "subject.h"
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>

enum { COUNT = 50, BYTES = 64 << 20 };
static pthread_mutex_t *mutexes;
static _Atomic int held;

static void *hold(void *mutex) {
  CHECK(!pthread_mutex_lock(mutex), "lock");
  for (held++;;) pause();
  return 0;
}

static void check(void) { CHECK(held == COUNT - 1, "%d", held); }

int main(int argc, char **argv) {
  const int fd = open(argv[1], O_RDWR | O_CREAT, 0600);
  CHECK(fd >= 0 && !ftruncate(fd, COUNT * sizeof *mutexes), "%m");
  mutexes = mmap(0, COUNT * sizeof *mutexes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(mutexes != MAP_FAILED, "%m");
  if (argc > 2) {
    for (int i = 0; i < COUNT; i++) {
      int result = pthread_mutex_trylock(&mutexes[i]);
      CHECK(result == EOWNERDEAD, "mutex %d: %s", i, strerror(result));
    }
    return 0;
  }
  pthread_mutexattr_t robust;
  pthread_mutexattr_init(&robust);
  pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
  pthread_mutexattr_setpshared(&robust, PTHREAD_PROCESS_SHARED);
  for (int i = 0; i < COUNT; i++) pthread_mutex_init(&mutexes[i], &robust);
  char *large = mmap(0, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(large != MAP_FAILED && !madvise(large, BYTES, MADV_NOHUGEPAGE), "%m");
  memset(large, 7, BYTES);
  CHECK(!pthread_mutex_lock(&mutexes[0]), "lock");
  for (int i = 1; i < COUNT; i++) {
    pthread_t thread;
    CHECK(!pthread_create(&thread, 0, hold, &mutexes[i]), "%m");
  }
  while (held < COUNT - 1) sched_yield();
  return obey(check);
}
