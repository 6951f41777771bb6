// SPDX-License-Identifier: LGPL-2.1-only
// crowd THREADS [deaf]: many threads that sleep until a check gives each of them a turn. "deaf": they block every
// signal, the main thread too.
#include "subject.h"
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>

enum { MOST = 4000 };
static pthread_t threads[MOST];
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t began = PTHREAD_COND_INITIALIZER, ended = PTHREAD_COND_INITIALIZER;
static int number, deaf;
static volatile unsigned generation, done, leave;
static unsigned long turns[MOST];
static __thread long own;

static void *run(void *at) {
  unsigned seen = 0;
  own = (long)at;
  // The C library's own mask would leave out the signals that it uses itself.
  uint64_t all = ~0ull;
  if (deaf) syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, 0, 8);
  pthread_mutex_lock(&gate);
  for (;;) {
    if (++done == (unsigned)number) pthread_cond_signal(&ended);
    while (generation == seen && !leave) pthread_cond_wait(&began, &gate);
    if (leave) break;
    seen = generation;
    CHECK(own == (long)at && pthread_mutex_trylock(&gate) == EBUSY, "thread %ld is another one", (long)at);
    turns[own]++;
    uint64_t mask = 0;
    CHECK(!syscall(SYS_rt_sigprocmask, SIG_BLOCK, 0, &mask, 8), "%m");
    CHECK(!deaf || mask == ~(1ull << (SIGKILL - 1) | 1ull << (SIGSTOP - 1)), "mask %lx", (long)mask);
  }
  pthread_mutex_unlock(&gate);
  return at;
}

static void check(void) {
  pthread_mutex_lock(&gate);
  generation++, done = 0;
  pthread_cond_broadcast(&began);
  while (done < (unsigned)number) pthread_cond_wait(&ended, &gate);
  pthread_mutex_unlock(&gate);
  for (int i = 0; i < number; i++) CHECK(turns[i] == generation, "thread %d had %lu turns", i, turns[i]);
}

int main(int argc, char **argv) {
  uint64_t all = ~0ull;
  CHECK(argc >= 2 && (number = atoi(argv[1])) <= MOST, "usage: crowd THREADS [deaf]");
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 65536);
  deaf = argc == 3;
  if (deaf) syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, 0, 8);
  for (long i = 0; i < number; i++) CHECK(!pthread_create(&threads[i], &small, run, (void *)i), "thread %ld: %m", i);
  pthread_mutex_lock(&gate);
  while (done < (unsigned)number) pthread_cond_wait(&ended, &gate);
  pthread_mutex_unlock(&gate);
  int result = obey(check);
  pthread_mutex_lock(&gate);
  leave = 1;
  pthread_cond_broadcast(&began);
  pthread_mutex_unlock(&gate);
  for (long i = 0; i < number; i++) {
    void *value;
    CHECK(!pthread_join(threads[i], &value) && value == (void *)i, "join %ld", i);
  }
  return result;
}
