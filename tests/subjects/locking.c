// SPDX-License-Identifier: LGPL-2.1-only
// locking [signal]: threads take locks that name their owner and give them back all the time, in every way that there
// is, and others wait for one with a time limit or in a mutex that the kernel knows, until it is given to them. Whenever
// they are saved, nobody may be refused what it holds. With "signal" the main thread blocks the checkpoint signal.
#include "subject.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>

enum { WAYS = 6, WAITERS = 6 };

static _Atomic unsigned long rounds[WAYS];
static _Atomic int stop;

static pthread_mutex_t made(int type, int robust, int inherits) {
  pthread_mutex_t mutex;
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_settype(&attributes, type);
  if (robust) pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  if (inherits) pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
  CHECK(!pthread_mutex_init(&mutex, &attributes), "a mutex");
  return mutex;
}

static int take(pthread_mutex_t *mutex, int way) {
  struct timespec past = {0, 0}, far;
  clock_gettime(CLOCK_REALTIME, &far);
  far.tv_sec += 100000;
  switch (way) {
  case 0: return pthread_mutex_trylock(mutex);
  case 1: return pthread_mutex_timedlock(mutex, &past);
  case 2: return pthread_mutex_timedlock(mutex, &far);
  default: return pthread_mutex_lock(mutex);
  }
}

// Ways 0 to 2 and 3 take a recursive mutex, 4 an error-checking one, 5 a reader-writer lock.
static void *go_round(void *number) {
  int way = (int)(long)number;
  pthread_mutex_t mutex = made(way == 4 ? PTHREAD_MUTEX_ERRORCHECK : PTHREAD_MUTEX_RECURSIVE, 0, 0);
  pthread_rwlock_t lock;
  CHECK(!pthread_rwlock_init(&lock, 0), "a lock");
  while (!stop) {
    int result = way == 5 ? pthread_rwlock_wrlock(&lock) : take(&mutex, way);
    CHECK(!result, "way %d, round %lu: not taken: %s", way, rounds[way], strerror(result));
    if (way < 4) {
      result = take(&mutex, way);
      CHECK(!result, "way %d, round %lu: not taken again: %s", way, rounds[way], strerror(result));
      result = pthread_mutex_unlock(&mutex);
      CHECK(!result, "way %d, round %lu: not given: %s", way, rounds[way], strerror(result));
    }
    result = way == 5 ? pthread_rwlock_unlock(&lock) : pthread_mutex_unlock(&mutex);
    CHECK(!result, "way %d, round %lu: not given back: %s", way, rounds[way], strerror(result));
    rounds[way]++;
  }
  return 0;
}

static struct waiter {
  pthread_mutex_t mutex;
  pthread_t thread;
  _Atomic pid_t waiting;
} waiters[WAITERS];

// 0: recursive, 1: error-checking, 2: robust, 3: priority inheritance, all with a time limit; 4 and 5 as 2 and 3 without.
static void *wait_for(void *given) {
  struct waiter *w = given;
  int number = (int)(w - waiters), way = number < 4 ? 2 : 3;
  w->waiting = (pid_t)syscall(SYS_gettid);
  int result = take(&w->mutex, way);
  CHECK(!result, "waiter %d: not taken: %s", number, strerror(result));
  if (number != 1) {
    result = take(&w->mutex, way);
    CHECK(!result, "waiter %d: not taken again: %s", number, strerror(result));
    CHECK(!pthread_mutex_unlock(&w->mutex), "waiter %d", number);
  }
  result = pthread_mutex_unlock(&w->mutex);
  CHECK(!result, "waiter %d: not given back: %s", number, strerror(result));
  return 0;
}

static void arm(void) {
  for (int i = 0; i < WAITERS; i++) {
    struct waiter *w = &waiters[i];
    int result = pthread_mutex_lock(&w->mutex);
    CHECK(!result, "mutex %d: %s", i, strerror(result));
    w->waiting = 0;
    CHECK(!pthread_create(&w->thread, 0, wait_for, w), "%m");
    while (!w->waiting) sched_yield();
    while (!asleep(w->waiting)) sched_yield();
  }
}

static void let_go(void) {
  for (int i = 0; i < WAITERS; i++) {
    int result = pthread_mutex_unlock(&waiters[i].mutex);
    CHECK(!result, "mutex %d: %s", i, strerror(result));
    CHECK(!pthread_join(waiters[i].thread, 0), "join %d", i);
  }
}

static void check(void) {
  let_go();
  for (int way = 0; way < WAYS; way++)
    for (unsigned long before = rounds[way]; rounds[way] < before + 10;) sched_yield();
  arm();
}

int main(int argc, char **argv) {
  pthread_t threads[WAYS];
  for (int i = 0; i < WAITERS; i++)
    waiters[i].mutex = made(i == 1 ? PTHREAD_MUTEX_ERRORCHECK : PTHREAD_MUTEX_RECURSIVE, i == 2 || i == 4, i == 3 || i == 5);
  for (long way = 0; way < WAYS; way++) CHECK(!pthread_create(&threads[way], 0, go_round, (void *)way), "%m");
  arm();
  if (argc == 2 && !strcmp(argv[1], "signal")) {
    sigset_t checkpoint;
    sigemptyset(&checkpoint);
    sigaddset(&checkpoint, SIGTSTP);
    CHECK(!pthread_sigmask(SIG_BLOCK, &checkpoint, 0), "mask");
  }
  int result = obey(check);
  let_go();
  stop = 1;
  for (int way = 0; way < WAYS; way++) CHECK(!pthread_join(threads[way], 0), "join");
  return result;
}
