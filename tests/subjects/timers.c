// SPDX-License-Identifier: LGPL-2.1-only
// Interval timers and POSIX timers of every kind: those that are far from their end have the time left that they had,
// the others go on ticking, each with its own id, signal, value, thread and overruns.
#include "subject.h"
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif
enum { CLOCKS = 5, TICK_NS = 5 * 1000 * 1000 };
static const clockid_t clocks[CLOCKS] = {CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME, CLOCK_PROCESS_CPUTIME_ID,
                                         CLOCK_THREAD_CPUTIME_ID};
// Raw system calls: the ids are the kernel's.
typedef int kernel_timer;
static kernel_timer far_away[CLOCKS], ticking, to_thread, silent, absolute, unarmed, once;
static timer_t by_thread;
static struct itimerval left[3];
static struct timespec timer_left[CLOCKS];
static struct timespec armed, absolute_left;
static volatile int calls, ticks_in_thread, stray, thread_leaves;
static volatile pid_t listener_tid;
static pthread_t listener;

static double seconds(struct timespec t) { return t.tv_sec + t.tv_nsec / 1e9; }
static double of_val(struct timeval t) { return t.tv_sec + t.tv_usec / 1e6; }

static double passed(void) {
  struct timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  return seconds(now) - seconds(armed);
}

static void on_notify(union sigval value) {
  if (value.sival_int == 4711) __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
}

// For SIGEV_THREAD_ID: the one thread that may see the signal.
static void *listen_for_ticks(void *unused) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 3);
  listener_tid = syscall(SYS_gettid);
  while (!thread_leaves) {
    siginfo_t got;
    int number = syscall(SYS_rt_sigtimedwait, &set, &got, 0, 8);
    if (number < 0) CHECK(errno == EINTR, "%m");
    else if (got.si_code != SI_TIMER || got.si_value.sival_int != 33) stray++;
    else ticks_in_thread++;
  }
  return unused;
}

static kernel_timer make(clockid_t clock, struct sigevent event);
static kernel_timer of_ended;

// Nobody hears of a timer of a thread that has ended, but it is there.
static void *make_own(void *unused) {
  struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 5};
  event.sigev_notify_thread_id = syscall(SYS_gettid);
  of_ended = make(CLOCK_MONOTONIC, event);
  return unused;
}

static kernel_timer make(clockid_t clock, struct sigevent event) {
  kernel_timer id;
  CHECK(!syscall(SYS_timer_create, clock, &event, &id), "%m");
  return id;
}

static void set_timer(kernel_timer id, int flags, double value, double interval) {
  struct itimerspec spec = {.it_value = {(time_t)value, (long)((value - (time_t)value) * 1e9)},
                            .it_interval = {(time_t)interval, (long)((interval - (time_t)interval) * 1e9)}};
  CHECK(!syscall(SYS_timer_settime, id, flags, &spec, 0), "%m");
}

static struct itimerspec get_timer(kernel_timer id) {
  struct itimerspec spec;
  CHECK(!syscall(SYS_timer_gettime, id, &spec), "timer %d: %m", id);
  return spec;
}

static struct sigevent signal_event(int number, int value) {
  return (struct sigevent){.sigev_notify = SIGEV_SIGNAL, .sigev_signo = number, .sigev_value.sival_int = value};
}

// What is left must be no more than it was, and no less by more than the time that has passed. Setting one of the
// timers that count CPU time adds a tick (kernel/time/itimer.c, set_cpu_itimer): 10 ms, and there may be two restarts.
static void has_left(const char *what, int number, double was, double is, double elapsed) {
  CHECK(is > 0 && is <= was + 0.02, "%s %d has %f s left and had %f", what, number, is, was);
  CHECK(is >= was - elapsed - 0.1, "%s %d has %f s left and had %f, %f s ago", what, number, is, was, elapsed);
}

static void look_at_far_ones(void) {
  double elapsed = passed();
  for (int i = 0; i < 3; i++) {
    struct itimerval now;
    CHECK(!getitimer(i, &now), "%m");
    CHECK(now.it_interval.tv_sec == 7000 + i && now.it_interval.tv_usec == 5, "interval of %d", i);
    has_left("interval timer", i, of_val(left[i].it_value), of_val(now.it_value), elapsed);
  }
  for (int i = 0; i < CLOCKS; i++) {
    struct itimerspec now = get_timer(far_away[i]);
    CHECK(now.it_interval.tv_sec == 9000 + i && now.it_interval.tv_nsec == 7, "interval of timer %d", i);
    has_left("timer on clock", i, seconds(timer_left[i]), seconds(now.it_value), elapsed);
  }
  struct itimerspec now = get_timer(unarmed);
  CHECK(seconds(now.it_value) == 0, "a timer that was not armed is");
  now = get_timer(of_ended);
  CHECK(seconds(now.it_value) > 8000 && seconds(now.it_value) <= 9000, "that of a thread that has ended has %f s left",
        seconds(now.it_value));
  now = get_timer(silent);
  CHECK(seconds(now.it_value) > 0 && seconds(now.it_value) <= 0.301, "the silent one has %f s left",
        seconds(now.it_value));
}

// A periodic timerfd, which stands still from its expiry until it is read.
static int unread;

static void wait_for_unread(void) {
  struct pollfd poll_unread = {.fd = unread, .events = POLLIN};
  int result;
  do result = poll(&poll_unread, 1, 20000);
  while (result < 0 && errno == EINTR);
  CHECK(result == 1, "the periodic timerfd expires no more: %d", result);
}

static void look_at_unread(void) {
  for (int i = 0; i < 3; i++) {
    uint64_t count = 0;
    wait_for_unread();
    CHECK(read(unread, &count, sizeof count) == sizeof count && count > 0, "%m");
  }
  wait_for_unread();
}

static void arm_far_ones(void) {
  clock_gettime(CLOCK_BOOTTIME, &armed);
  for (int i = 0; i < 3; i++) {
    struct itimerval value = {.it_value = {5000 + i, 250000}, .it_interval = {7000 + i, 5}};
    CHECK(!setitimer(i, &value, 0), "%m");
    CHECK(!getitimer(i, &left[i]), "%m");
  }
  for (int i = 0; i < CLOCKS; i++) {
    struct itimerspec spec = {.it_value = {6000 + i, 500000000}, .it_interval = {9000 + i, 7}};
    CHECK(!syscall(SYS_timer_settime, far_away[i], 0, &spec, 0), "%m");
    timer_left[i] = get_timer(far_away[i]).it_value;
  }
  absolute_left = get_timer(absolute).it_value;
}

// Waits for a signal that everybody blocks; it must come from this timer.
static int await(int number, kernel_timer id, int value) {
  sigset_t set;
  siginfo_t got = {0};
  sigemptyset(&set);
  sigaddset(&set, number);
  int result;
  do result = syscall(SYS_rt_sigtimedwait, &set, &got, 0, 8);
  while (result < 0 && errno == EINTR);
  CHECK(result == number, "signal %d instead of %d: %m", result, number);
  CHECK(got.si_code == SI_TIMER, "signal %d with code %d", number, got.si_code);
  CHECK(got.si_value.sival_int == value, "signal %d with value %d", number, got.si_value.sival_int);
  CHECK(got.si_timerid == id, "signal %d from timer %d instead of %d", number, got.si_timerid, id);
  CHECK(syscall(SYS_timer_getoverrun, id) == got.si_overrun, "overrun %d and %ld", got.si_overrun,
        (long)syscall(SYS_timer_getoverrun, id));
  return got.si_overrun;
}

static void ticks_go_on(void) {
  int seen = calls, thread_seen = ticks_in_thread;
  await(SIGRTMIN + 2, ticking, 22);
  await(SIGRTMIN + 2, ticking, 22);
  while (calls < seen + 3 || ticks_in_thread < thread_seen + 3) sched_yield();
  CHECK(!stray, "%d strays", stray);
  // Ticks that nobody takes are counted.
  struct timespec now, begin;
  clock_gettime(CLOCK_MONOTONIC, &begin);
  do clock_gettime(CLOCK_MONOTONIC, &now);
  while (seconds(now) - seconds(begin) < 6 * TICK_NS / 1e9);
  int overruns = await(SIGRTMIN + 2, ticking, 22);
  CHECK(overruns >= 3, "%d overruns", overruns);
}

static void interval_timers_fire(void) {
  static const int numbers[3] = {SIGALRM, SIGVTALRM, SIGPROF};
  for (int i = 0; i < 3; i++) {
    struct itimerval value = {.it_value = {0, 10000}}, before;
    CHECK(!setitimer(i, &value, &before), "%m");
    sigset_t pending;
    do sigpending(&pending);
    while (!sigismember(&pending, numbers[i]));
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, numbers[i]);
    int got;
    CHECK(!sigwait(&set, &got) && got == numbers[i], "signal %d", got);
  }
}

static void check(void) {
  look_at_unread();
  look_at_far_ones();
  await(SIGRTMIN + 4, once, 44);
  set_timer(once, 0, 0.02, 0);
  ticks_go_on();
  struct itimerspec now = get_timer(absolute);
  has_left("the absolute timer", absolute, seconds(absolute_left), seconds(now.it_value), passed());
  interval_timers_fire();
  arm_far_ones();
}

int main(void) {
  sigset_t blocked;
  sigemptyset(&blocked);
  for (int i = 2; i <= 5; i++) sigaddset(&blocked, SIGRTMIN + i);
  sigaddset(&blocked, SIGALRM), sigaddset(&blocked, SIGVTALRM), sigaddset(&blocked, SIGPROF);
  sigprocmask(SIG_BLOCK, &blocked, 0);
  CHECK(!pthread_create(&listener, 0, listen_for_ticks, 0), "%m");
  while (!listener_tid) sched_yield();

  kernel_timer gap = make(CLOCK_MONOTONIC, signal_event(SIGRTMIN + 5, 0));
  for (int i = 0; i < CLOCKS; i++) far_away[i] = make(clocks[i], signal_event(SIGRTMIN + 5, i));
  ticking = make(CLOCK_MONOTONIC, signal_event(SIGRTMIN + 2, 22));
  once = make(CLOCK_REALTIME, signal_event(SIGRTMIN + 4, 44));
  struct sigevent event = signal_event(SIGRTMIN + 3, 33);
  event.sigev_notify = SIGEV_THREAD_ID, event.sigev_notify_thread_id = listener_tid;
  to_thread = make(CLOCK_MONOTONIC, event);
  silent = make(CLOCK_MONOTONIC, (struct sigevent){.sigev_notify = SIGEV_NONE});
  unarmed = make(CLOCK_MONOTONIC, signal_event(SIGRTMIN + 5, 0));
  absolute = make(CLOCK_BOOTTIME, signal_event(SIGRTMIN + 5, 0));
  CHECK(!syscall(SYS_timer_delete, gap), "%m");
  struct sigevent call = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = on_notify};
  call.sigev_value.sival_int = 4711;
  CHECK(!timer_create(CLOCK_MONOTONIC, &call, &by_thread), "%m");

  struct itimerspec spec = {0};
  clock_gettime(CLOCK_BOOTTIME, &spec.it_value);
  spec.it_value.tv_sec += 8000;
  CHECK(!syscall(SYS_timer_settime, absolute, TIMER_ABSTIME, &spec, 0), "%m");
  arm_far_ones();
  pthread_t ends;
  CHECK(!pthread_create(&ends, 0, make_own, 0) && !pthread_join(ends, 0), "%m");
  set_timer(of_ended, 0, 9000, 0);
  set_timer(silent, 0, 0.3, 0.3);
  set_timer(ticking, 0, TICK_NS / 1e9, TICK_NS / 1e9);
  set_timer(to_thread, 0, TICK_NS / 1e9, TICK_NS / 1e9);
  set_timer(once, 0, 0.02, 0);
  spec = (struct itimerspec){.it_value = {0, TICK_NS}, .it_interval = {0, TICK_NS}};
  CHECK(!timer_settime(by_thread, 0, &spec, 0), "%m");
  unread = timerfd_create(CLOCK_MONOTONIC, 0);
  CHECK(unread >= 0 && !timerfd_settime(unread, 0, &spec, 0), "%m");
  wait_for_unread();
  int result = obey(check);
  thread_leaves = 1;
  CHECK(!pthread_join(listener, 0), "join");
  return result;
}
