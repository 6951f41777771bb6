// SPDX-License-Identifier: LGPL-2.1-only
// Threads that are created and end all the time, joined and detached ones, by several creators.
#include "subject.h"
#include <pthread.h>
#include <sched.h>

enum { CREATORS = 3, JOINED = 3 };
static pthread_t creators[CREATORS];
static pthread_key_t key;
static volatile int leave;
static unsigned long made[CREATORS], destroyed, detached, detached_ended;
static __thread unsigned long local[64];

static void destroy(void *value) { __atomic_add_fetch((unsigned long *)value, 1, __ATOMIC_SEQ_CST); }

static void *live_shortly(void *value) {
  for (unsigned i = 0; i < 64; i++) {
    CHECK(!local[i], "thread-local memory of a new thread is not zero");
    local[i] = (unsigned long)value + i;
  }
  sched_yield();
  for (unsigned i = 0; i < 64; i++) CHECK(local[i] == (unsigned long)value + i, "thread-local memory has changed");
  CHECK(!pthread_setspecific(key, &destroyed), "key");
  return value;
}

static void *leave_alone(void *value) {
  sched_yield();
  __atomic_add_fetch(&detached_ended, 1, __ATOMIC_SEQ_CST);
  return value;
}

static void *create(void *number) {
  long me = (long)number;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  while (!leave) {
    pthread_t threads[JOINED], alone;
    for (long i = 0; i < JOINED; i++)
      CHECK(!pthread_create(&threads[i], 0, live_shortly, (void *)(made[me] + i)), "%m");
    if (__atomic_load_n(&detached, __ATOMIC_SEQ_CST) - __atomic_load_n(&detached_ended, __ATOMIC_SEQ_CST) < 8) {
      __atomic_add_fetch(&detached, 1, __ATOMIC_SEQ_CST);
      CHECK(!pthread_create(&alone, &attributes, leave_alone, 0), "%m");
    }
    for (long i = 0; i < JOINED; i++) {
      void *value;
      CHECK(!pthread_join(threads[i], &value) && value == (void *)(made[me] + i), "joined another one: %p", value);
    }
    made[me] += JOINED;
  }
  return 0;
}

static void check(void) {
  unsigned long before[CREATORS], alone = detached_ended;
  for (int i = 0; i < CREATORS; i++) before[i] = __atomic_load_n(&made[i], __ATOMIC_SEQ_CST);
  for (int i = 0; i < CREATORS; i++)
    while (__atomic_load_n(&made[i], __ATOMIC_SEQ_CST) < before[i] + 5 * JOINED) sched_yield();
  while (__atomic_load_n(&detached_ended, __ATOMIC_SEQ_CST) == alone) sched_yield();
}

int main(void) {
  CHECK(!pthread_key_create(&key, destroy), "key");
  for (long i = 0; i < CREATORS; i++) CHECK(!pthread_create(&creators[i], 0, create, (void *)i), "%m");
  int result = obey(check);
  leave = 1;
  unsigned long all = 0;
  for (int i = 0; i < CREATORS; i++) {
    CHECK(!pthread_join(creators[i], 0), "join");
    all += made[i];
  }
  while (__atomic_load_n(&detached_ended, __ATOMIC_SEQ_CST) < detached) sched_yield();
  CHECK(destroyed == all, "%lu destructors for %lu threads", destroyed, all);
  return result;
}
