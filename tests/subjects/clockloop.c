// SPDX-License-Identifier: LGPL-2.1-only
// Three threads that read clocks without end, so that every stop finds some of them inside of the vdso, and a timer whose
// signals interrupt them there.
#include "subject.h"
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#include <time.h>

enum { THREADS = 3 };
static volatile unsigned long turns[THREADS];
static volatile sig_atomic_t alarms;

static void on_alarm(int number) { alarms += number == SIGALRM; }

static void *read_clocks(void *argument) {
  volatile unsigned long *count = argument;
  for (;; ++*count) {
    struct timespec t;
    struct timeval v;
    CHECK(!clock_gettime(CLOCK_MONOTONIC, &t) && t.tv_nsec >= 0 && t.tv_nsec < 1000000000, "%ld", t.tv_nsec);
    CHECK(!clock_gettime(CLOCK_REALTIME, &t) && t.tv_sec > 1000000000, "%ld", (long)t.tv_sec);
    CHECK(!gettimeofday(&v, 0) && v.tv_sec > 1000000000, "%ld", (long)v.tv_sec);
  }
  return 0;
}

// Every thread goes on, and the signals still come.
static void check(void) {
  unsigned long before[THREADS];
  int count = alarms;
  for (int i = 0; i < THREADS; i++) before[i] = turns[i];
  struct timespec pause = {0, 1000000};
  for (int i = 0; i < THREADS; i++)
    while (turns[i] == before[i]) nanosleep(&pause, 0);
  while (alarms == count) nanosleep(&pause, 0);
}

int main(void) {
  struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
  struct itimerval often = {{0, 5000}, {0, 5000}};
  CHECK(!sigaction(SIGALRM, &action, 0) && !setitimer(ITIMER_REAL, &often, 0), "%m");
  for (int i = 0; i < THREADS; i++) {
    pthread_t thread;
    CHECK(!pthread_create(&thread, 0, read_clocks, (void *)&turns[i]), "no thread");
  }
  return obey(check);
}
