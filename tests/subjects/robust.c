// SPDX-License-Identifier: LGPL-2.1-only
// robust [held]: a thread ends while it holds a robust mutex, and the next one who locks that is told. "held": it holds
// one at the checkpoint already.
#include "subject.h"
#include <pthread.h>

static int held_before;
static pthread_mutex_t mutexes[2];
static pthread_t holder;
static pthread_barrier_t held, leave;

static void *hold(void *value) {
  if (held_before) CHECK(!pthread_mutex_lock(&mutexes[0]), "the first mutex");
  pthread_barrier_wait(&held);
  pthread_barrier_wait(&leave);
  if (!held_before) CHECK(!pthread_mutex_lock(&mutexes[0]), "the first mutex");
  CHECK(!pthread_mutex_lock(&mutexes[1]), "the second mutex");
  return value;
}

static void start(void) {
  CHECK(!pthread_create(&holder, 0, hold, 0), "%m");
  pthread_barrier_wait(&held);
}

static void check(void) {
  pthread_barrier_wait(&leave);
  CHECK(!pthread_join(holder, 0), "join");
  for (int i = 1; i >= 0; i--) {
    int result = pthread_mutex_lock(&mutexes[i]);
    CHECK(result == EOWNERDEAD, "mutex %d: %s", i, strerror(result));
    CHECK(!pthread_mutex_consistent(&mutexes[i]), "mutex %d", i);
    CHECK(!pthread_mutex_unlock(&mutexes[i]), "mutex %d", i);
  }
  start();
}

int main(int argc, char **argv) {
  held_before = argc == 2 && !strcmp(argv[1], "held");
  pthread_mutexattr_t robust;
  pthread_mutexattr_init(&robust);
  pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
  for (int i = 0; i < 2; i++) pthread_mutex_init(&mutexes[i], &robust);
  pthread_barrier_init(&held, 0, 2);
  pthread_barrier_init(&leave, 0, 2);
  start();
  return obey(check);
}
