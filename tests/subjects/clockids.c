// SPDX-License-Identifier: LGPL-2.1-only
// clockids: keeps the ids of its CPU clocks, of a second thread's too.
#include "subject.h"
#include <pthread.h>
#include <time.h>

static clockid_t ids[3];

static void *stay(void *unused) {
  for (;;) pause();
  return unused;
}

static void check(void) {
  struct timespec time;
  for (int i = 0; i < 3; i++) CHECK(!clock_gettime(ids[i], &time), "clock %d: %m", i);
}

int main(void) {
  pthread_t other;
  CHECK(!pthread_create(&other, 0, stay, 0), "%m");
  CHECK(!clock_getcpuclockid(getpid(), ids), "%m");
  CHECK(!pthread_getcpuclockid(pthread_self(), ids + 1) && !pthread_getcpuclockid(other, ids + 2), "%m");
  return obey(check);
}
