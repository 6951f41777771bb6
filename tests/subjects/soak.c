// SPDX-License-Identifier: LGPL-2.1-only
// Threads that compute, allocate, wait for each other and sleep, all the time; "check" compares the result of each
// round, which is known.
#include "subject.h"
#include <pthread.h>
#include <time.h>

enum { THREADS = 3, LENGTH = 4000 };
static pthread_t threads[THREADS], sleeper;
static pthread_barrier_t barrier;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t round_over = PTHREAD_COND_INITIALIZER;
static uint64_t parts[THREADS], expected, rounds;
static volatile int leave, naps;
static int last;

static uint64_t part_of(long me, uint32_t *numbers) {
  uint64_t sum = 1469598103934665603u + me;
  double x = 0.25 + me * 0.125;
  for (int i = 0; i < LENGTH; i++) {
    x = 3.75 * x * (1 - x);
    numbers[i] = (uint32_t)(x * 1e9);
    sum = (sum ^ numbers[i]) * 1099511628211u;
  }
  return sum;
}

static void *work(void *number) {
  long me = (long)number;
  for (;;) {
    uint32_t *numbers = malloc(LENGTH * sizeof *numbers);
    CHECK(numbers, "%m");
    parts[me] = part_of(me, numbers);
    free(numbers);
    if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD) {
      uint64_t sum = 0;
      for (int i = 0; i < THREADS; i++) sum = sum * 31 + parts[i];
      CHECK(sum == expected, "round %lu gave %lx instead of %lx", (long)rounds, (long)sum, (long)expected);
      pthread_mutex_lock(&gate);
      rounds++;
      last = leave;
      pthread_cond_broadcast(&round_over);
      pthread_mutex_unlock(&gate);
    }
    pthread_barrier_wait(&barrier);
    if (last) return 0;
  }
}

static void *nap(void *unused) {
  struct timespec shortly = {0, 300000};
  while (!leave) {
    CHECK(!nanosleep(&shortly, 0), "nanosleep: %m");
    naps++;
  }
  return unused;
}

static void check(void) {
  pthread_mutex_lock(&gate);
  uint64_t before = rounds;
  int slept = naps;
  while (rounds < before + 3 || naps == slept) pthread_cond_wait(&round_over, &gate);
  pthread_mutex_unlock(&gate);
}

int main(void) {
  uint32_t numbers[LENGTH];
  for (long i = 0; i < THREADS; i++) expected = expected * 31 + part_of(i, numbers);
  pthread_barrier_init(&barrier, 0, THREADS);
  CHECK(!pthread_create(&sleeper, 0, nap, 0), "%m");
  for (long i = 0; i < THREADS; i++) CHECK(!pthread_create(&threads[i], 0, work, (void *)i), "%m");
  int result = obey(check);
  leave = 1;
  for (int i = 0; i < THREADS; i++) CHECK(!pthread_join(threads[i], 0), "join");
  CHECK(!pthread_join(sleeper, 0), "join");
  return result;
}
