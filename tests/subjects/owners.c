// SPDX-License-Identifier: LGPL-2.1-only
// owners: mutexes that name their owner, and a reader-writer lock, are held at the checkpoint, by the main thread and
// by another, twice where that is allowed, while somebody waits for them. After it they can be given back, and who
// waited has them.
#include "subject.h"
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>

enum { KINDS = 5, HOLDERS = 2 };

struct lock {
  int kind, holder;
  pthread_mutex_t mutex;
  pthread_rwlock_t lock;
  pthread_t waiter;
  _Atomic pid_t waiting;
};

static struct lock locks[HOLDERS][KINDS];
static pthread_barrier_t held, leave, left;

static int take(struct lock *l) {
  return l->kind == 4 ? pthread_rwlock_wrlock(&l->lock) : pthread_mutex_lock(&l->mutex);
}

static int give(struct lock *l) {
  return l->kind == 4 ? pthread_rwlock_unlock(&l->lock) : pthread_mutex_unlock(&l->mutex);
}

// Recursive ones may be taken again, which error-checking ones refuse.
static int recursive(const struct lock *l) { return l->kind == 0 || l->kind == 2; }

static void prepare(struct lock *l, int kind, int holder) {
  static const int types[] = {PTHREAD_MUTEX_RECURSIVE, PTHREAD_MUTEX_ERRORCHECK, PTHREAD_MUTEX_RECURSIVE,
                              PTHREAD_MUTEX_NORMAL, 0};
  l->kind = kind, l->holder = holder;
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_settype(&attributes, types[kind]);
  if (kind == 2 || kind == 3) pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
  CHECK(!pthread_mutex_init(&l->mutex, &attributes), "mutex %d", kind);
  CHECK(!pthread_rwlock_init(&l->lock, 0), "lock");
}

static void hold(int holder) {
  for (int i = 0; i < KINDS; i++) {
    struct lock *l = &locks[holder][i];
    CHECK(!take(l), "lock %d", i);
    if (recursive(l)) CHECK(!take(l), "lock %d again", i);
  }
}

static void let_go(int holder) {
  for (int i = 0; i < KINDS; i++) {
    struct lock *l = &locks[holder][i];
    if (l->kind == 1) CHECK(take(l) == EDEADLK, "an error-checking mutex was taken again");
    if (recursive(l)) {
      int result = give(l);
      CHECK(!result, "lock %d: %s", i, strerror(result));
    }
    int result = give(l);
    CHECK(!result, "lock %d: %s", i, strerror(result));
  }
}

static void *wait_for(void *given) {
  struct lock *l = given;
  l->waiting = (pid_t)syscall(SYS_gettid);
  CHECK(!take(l), "lock %d", l->kind);
  CHECK(!give(l), "lock %d", l->kind);
  return 0;
}

static void *other(void *unused) {
  for (;;) {
    hold(1);
    pthread_barrier_wait(&held);
    pthread_barrier_wait(&leave);
    let_go(1);
    pthread_barrier_wait(&left);
  }
  return unused;
}

static void arm(void) {
  hold(0);
  pthread_barrier_wait(&held);
  for (int i = 0; i < HOLDERS * KINDS; i++) {
    struct lock *l = &locks[i / KINDS][i % KINDS];
    l->waiting = 0;
    CHECK(!pthread_create(&l->waiter, 0, wait_for, l), "%m");
    while (!l->waiting) sched_yield();
    // One that has said its id sleeps only for its lock.
    while (!asleep(l->waiting)) sched_yield();
  }
}

static void check(void) {
  pthread_barrier_wait(&leave);
  let_go(0);
  for (int i = 0; i < HOLDERS * KINDS; i++) {
    struct lock *l = &locks[i / KINDS][i % KINDS];
    CHECK(!pthread_join(l->waiter, 0), "join %d", i);
  }
  pthread_barrier_wait(&left);
  arm();
}

int main(void) {
  pthread_t thread;
  pthread_barrier_init(&held, 0, HOLDERS);
  pthread_barrier_init(&leave, 0, HOLDERS);
  pthread_barrier_init(&left, 0, HOLDERS);
  for (int i = 0; i < HOLDERS * KINDS; i++) prepare(&locks[i / KINDS][i % KINDS], i % KINDS, i / KINDS);
  CHECK(!pthread_create(&thread, 0, other, 0), "%m");
  arm();
  return obey(check);
}
