// SPDX-License-Identifier: LGPL-2.1-only
// functions: a timer whose function a thread runs (SIGEV_THREAD), ten thousand times a second: the thread that waits for its
// signals is seldom found waiting. Each check makes another such timer, which needs to know that thread's id.
#include "subject.h"
#include <signal.h>
#include <time.h>

static _Atomic long calls, others;
static void count(union sigval value) { value.sival_int ? others++ : calls++; }

static timer_t make(int which, long period) {
  timer_t timer;
  struct sigevent event = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = count, .sigev_value.sival_int = which};
  struct itimerspec often = {{0, period}, {0, period}};
  CHECK(!timer_create(CLOCK_MONOTONIC, &event, &timer), "another timer: %m");
  CHECK(!timer_settime(timer, 0, &often, 0), "%m");
  return timer;
}

static void check(void) {
  long before = calls;
  others = 0;
  timer_t timer = make(1, 1000000);
  while (!others || calls == before) nanosleep(&(struct timespec){0, 1000000}, 0);
  CHECK(!timer_delete(timer), "%m");
}

int main(void) {
  make(0, 100000);
  check();
  return obey(check);
}
