// SPDX-License-Identifier: LGPL-2.1-only
// ticks: timers of CPU time, of which nothing may run while the program waits, whatever is done to it there.
#include "subject.h"
#include <signal.h>
#include <sys/time.h>
#include <time.h>

enum { TIMERS = 5, ROUNDS = 1000 };
#define MS 1000000L

static timer_t posix[3];
static long before[TIMERS];
static volatile unsigned long spun;

// A test probes its beginning.
__attribute__((noinline)) static long left(int which) {
  if (which < 2) {
    struct itimerval now;
    CHECK(!getitimer(which ? ITIMER_PROF : ITIMER_VIRTUAL, &now), "%m");
    return now.it_value.tv_sec * 1000 * MS + now.it_value.tv_usec * 1000;
  }
  struct itimerspec now;
  CHECK(!timer_gettime(posix[which - 2], &now), "%m");
  return now.it_value.tv_sec * 1000 * MS + now.it_value.tv_nsec;
}

static void note(void) {
  for (int i = 0; i < TIMERS; i++) before[i] = left(i);
}

static void check(void) {
  // A look may fall on either side of a tick.
  for (int i = 0; i < TIMERS; i++) {
    long used = before[i] - left(i);
    CHECK(used >= -100000 && used <= 30 * MS, "timer %d has used %ld ns", i, used);
  }
  for (int i = 0; i < ROUNDS * 1000; i++) spun++;
  note();
}

int main(void) {
  struct itimerval value = {.it_value = {500, 0}, .it_interval = {7, 0}};
  CHECK(!setitimer(ITIMER_VIRTUAL, &value, 0) && !setitimer(ITIMER_PROF, &value, 0), "%m");
  clockid_t process;
  CHECK(!clock_getcpuclockid(0, &process), "%m");
  // CPUCLOCK_PROF, CPUCLOCK_VIRT, CPUCLOCK_SCHED.
  for (int i = 0; i < 3; i++) {
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    struct itimerspec spec = {.it_value = {500, 0}};
    CHECK(!timer_create((process & ~3) | i, &none, posix + i) && !timer_settime(posix[i], 0, &spec, 0), "%m");
  }
  note();
  return obey(check);
}
