// SPDX-License-Identifier: LGPL-2.1-only
// moments: threads that wait until a moment of each clock, some in each call. One sleeps for a part
// of that time only, so whoever wakes before it has been woken early, whatever the clocks say. "ready" when all are asleep,
// "over" when all have woken. Then it hears how many milliseconds of the time of day CLOCK_MONOTONIC must have missed.
#include "subject.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>

enum { LATE_MS = 2000, EARLY_MS = 400, EACH = 3 };
static struct timespec monotonic, boottime, of_day;
static _Atomic int early_is_over;
static volatile int word;
static long long began[2];

static long long now(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static struct timespec after(clockid_t clock) {
  long long t = now(clock) + LATE_MS * 1000000LL;
  return (struct timespec){t / 1000000000, t % 1000000000};
}

static int early(void) { return nanosleep(&(struct timespec){0, EARLY_MS * 1000000}, 0); }
static int until(clockid_t clock, const struct timespec *at) { return clock_nanosleep(clock, TIMER_ABSTIME, at, 0); }
static int by_nanosleep(void) { return until(CLOCK_MONOTONIC, &monotonic); }
static int by_boottime(void) { return until(CLOCK_BOOTTIME, &boottime); }
static int condition(clockid_t clock, const struct timespec *at) {
  pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  pthread_condattr_t attributes;
  pthread_cond_t never;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, clock);
  pthread_cond_init(&never, &attributes);
  pthread_mutex_lock(&lock);
  return pthread_cond_timedwait(&never, &lock, at) == ETIMEDOUT ? 0 : -1;
}
static int by_condition(void) { return condition(CLOCK_MONOTONIC, &monotonic); }
static int by_semaphore(void) {
  sem_t closed;
  sem_init(&closed, 0, 0);
  return sem_clockwait(&closed, CLOCK_MONOTONIC, &monotonic) < 0 && errno == ETIMEDOUT ? 0 : -1;
}
static int by_futex(void) {
  long result = syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, 0, &monotonic, 0, -1);
  return result < 0 && errno == ETIMEDOUT ? 0 : -1;
}
static int by_vector(void) {
  struct { uint64_t value, address; uint32_t flags, reserved; } vector = {0, (uintptr_t)&word, 2, 0};
  long result = syscall(449, &vector, 1, 0, &boottime, CLOCK_BOOTTIME);
  if (result < 0 && (errno == ENOSYS || errno == EINVAL)) return by_boottime();
  return result < 0 && errno == ETIMEDOUT ? 0 : -1;
}
static int by_descriptor(void) {
  uint64_t times;
  struct itimerspec at = {.it_value = monotonic};
  int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
  CHECK(fd >= 0 && !timerfd_settime(fd, TFD_TIMER_ABSTIME, &at, 0), "%m");
  return read(fd, &times, 8) == 8 && times == 1 ? 0 : -1;
}
static int by_day(void) { return until(CLOCK_REALTIME, &of_day); }
static int by_condition_of_day(void) { return condition(CLOCK_REALTIME, &of_day); }
static int by_semaphore_of_day(void) {
  sem_t closed;
  sem_init(&closed, 0, 0);
  return sem_timedwait(&closed, &of_day) < 0 && errno == ETIMEDOUT ? 0 : -1;
}
// The main thread has it, and the kernel knows (FUTEX_LOCK_PI).
static pthread_mutex_t held;
static void hold(void) {
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
  CHECK(!pthread_mutex_init(&held, &attributes) && !pthread_mutex_lock(&held), "%m");
}
static int by_mutex(void) { return pthread_mutex_timedlock(&held, &of_day) == ETIMEDOUT ? 0 : -1; }

static const struct call { const char *name; int (*wait)(void); } calls[] = {
    {"nanosleep", by_nanosleep}, {"boottime", by_boottime}, {"condition", by_condition}, {"semaphore", by_semaphore},
    {"futex", by_futex}, {"vector", by_vector}, {"descriptor", by_descriptor}, {"day", by_day},
    {"condition of day", by_condition_of_day}, {"semaphore of day", by_semaphore_of_day}, {"mutex", by_mutex}};
enum { CALLS = sizeof calls / sizeof *calls, ALL = CALLS * EACH };
static struct { pthread_t thread; _Atomic pid_t tid; _Atomic int ended; } sleepers[ALL + 1];

static void *run(void *at) {
  long index = (long)at;
  sleepers[index].tid = (pid_t)syscall(SYS_gettid);
  if (index == ALL) {
    CHECK(!early(), "the short sleep: %m");
    early_is_over = 1;
  } else {
    const struct call *call = &calls[index % CALLS];
    int result = call->wait();
    CHECK(!result, "%s gave %d: %m", call->name, result);
    CHECK(early_is_over, "%s ended early", call->name);
  }
  sleepers[index].ended = 1;
  return 0;
}

int main(void) {
  char line[64];
  hold();
  monotonic = after(CLOCK_MONOTONIC), boottime = after(CLOCK_BOOTTIME), of_day = after(CLOCK_REALTIME);
  began[0] = now(CLOCK_MONOTONIC), began[1] = now(CLOCK_REALTIME);
  for (long i = ALL; i >= 0; i--) CHECK(!pthread_create(&sleepers[i].thread, 0, run, (void *)i), "%m");
  for (int i = 0; i <= ALL; i++) {
    while (!sleepers[i].tid) sched_yield();
    while (!sleepers[i].ended && !asleep(sleepers[i].tid)) sched_yield();
  }
  say("ready\n");
  for (int i = 0; i <= ALL; i++) pthread_join(sleepers[i].thread, 0);
  say("over\n");
  CHECK(!pthread_mutex_unlock(&held), "the mutex cannot be given back");
  hear(line, sizeof line);
  long long missed = (now(CLOCK_REALTIME) - began[1]) - (now(CLOCK_MONOTONIC) - began[0]);
  CHECK(missed / 1000000 >= atoll(line), "CLOCK_MONOTONIC has missed %lld ns", missed);
  return 0;
}
