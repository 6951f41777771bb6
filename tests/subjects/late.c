// SPDX-License-Identifier: LGPL-2.1-only
// late [unshared]: a POSIX timer with a high number, one on a thread's CPU clock, and glibc's thread for functions of timers,
// which serves a further timer, too. "unshared": a thread has descriptors of its own.
#include "subject.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>

static _Atomic int calls;
static timer_t high, cpu;

static void on_notify(union sigval unused) {
  (void)unused;
  calls++;
}

static void *alone(void *ready) {
  CHECK(!unshare(CLONE_FILES), "%m");
  *(_Atomic int *)ready = 1;
  for (;;) pause();
}

static timer_t notifying(void) {
  struct sigevent event = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = on_notify};
  struct itimerspec soon = {.it_value = {0, 1000000}};
  timer_t timer;
  int before = calls;
  CHECK(!timer_create(CLOCK_MONOTONIC, &event, &timer), "a further timer: %m");
  CHECK(!timer_settime(timer, 0, &soon, 0), "%m");
  while (calls == before) sched_yield();
  return timer;
}

static void check(void) {
  struct itimerspec left;
  CHECK(!timer_gettime(high, &left) && left.it_value.tv_sec > 1000, "%m, %ld s", (long)left.it_value.tv_sec);
  CHECK(!timer_gettime(cpu, &left) && left.it_value.tv_sec > 1000, "%m, %ld s", (long)left.it_value.tv_sec);
  CHECK(!timer_delete(notifying()), "%m");
}

int main(int argc, char **argv) {
  (void)argv;
  struct sigevent silent = {.sigev_notify = SIGEV_NONE};
  struct itimerspec far = {.it_value = {5000, 0}};
  for (int i = 0; i < 25000; i++) CHECK(!timer_create(CLOCK_MONOTONIC, &silent, &high) && !timer_delete(high), "%m");
  CHECK(!timer_create(CLOCK_MONOTONIC, &silent, &high) && !timer_settime(high, 0, &far, 0), "%m");
  notifying();
  clockid_t clock;
  CHECK(!pthread_getcpuclockid(pthread_self(), &clock), "no clock");
  CHECK(!timer_create(clock, &silent, &cpu) && !timer_settime(cpu, 0, &far, 0), "%m");
  _Atomic int ready = argc < 2;
  pthread_t thread;
  if (!ready) CHECK(!pthread_create(&thread, 0, alone, (void *)&ready), "%m");
  while (!ready) sched_yield();
  return obey(check);
}
