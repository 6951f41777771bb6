// SPDX-License-Identifier: LGPL-2.1-only
// Sleeps until a moment of CLOCK_MONOTONIC, two seconds after it is ready, by clock_nanosleep and, in another thread, by a
// condition variable; both must wake in time, whatever the clock of the machine says. A third thread says "ready" when both
// are asleep: a moment that a program has read and not yet slept until stays what it was.
#include "subject.h"
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>

static struct timespec end;
static _Atomic pid_t sleepers[2];

static void *announce(void *unused) {
  for (int i = 0; i < 2; i++) {
    while (!sleepers[i]) sched_yield();
    while (!asleep(sleepers[i])) sched_yield();
  }
  say("ready\n");
  return unused;
}

static void *wait_for_condition(void *unused) {
  pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  pthread_condattr_t attributes;
  pthread_cond_t never;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(&never, &attributes);
  pthread_mutex_lock(&lock);
  sleepers[1] = (pid_t)syscall(SYS_gettid);
  int result = pthread_cond_timedwait(&never, &lock, &end);
  CHECK(result == ETIMEDOUT, "%s", strerror(result));
  return unused;
}

int main(void) {
  pthread_t thread, herald;
  clock_gettime(CLOCK_MONOTONIC, &end);
  end.tv_sec += 2;
  CHECK(!pthread_create(&thread, 0, wait_for_condition, 0), "no thread");
  CHECK(!pthread_create(&herald, 0, announce, 0), "no thread");
  pthread_detach(herald);
  sleepers[0] = (pid_t)syscall(SYS_gettid);
  int result = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, 0);
  CHECK(!result, "%s", strerror(result));
  pthread_join(thread, 0);
  say("woke\n");
  return 0;
}
