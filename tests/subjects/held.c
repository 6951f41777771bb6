// SPDX-License-Identifier: LGPL-2.1-only
// held: every sort of mutex that names its owner, everywhere where memory is, and reader-writer locks: taken by the main
// thread and another in every way, each with one more thread that waits for it. After a checkpoint the owner is the owner:
// it may take again what it may, others may not give it back, and who waited gets it.
#include "subject.h"
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <threads.h>
#include <time.h>

enum { TYPES = 3, MUTEXES = TYPES * 2 * 2 * 2, WRITES = 2, C11 = 1, SORTS = MUTEXES + WRITES + C11, PLACES = 4, HOLDERS = 2 };
static const int types[TYPES] = {PTHREAD_MUTEX_NORMAL, PTHREAD_MUTEX_RECURSIVE, PTHREAD_MUTEX_ERRORCHECK};

struct lock {
  int sort, type, robust, inherits, shared;
  union { pthread_mutex_t mutex; pthread_rwlock_t write; mtx_t c11; };
  pthread_t waiter;
  _Atomic pid_t waiting;
  _Atomic int got;
};
static struct lock fixed[HOLDERS][SORTS], *places[PLACES][HOLDERS];
static pthread_barrier_t held, leave, left;

static struct timespec far(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  t.tv_sec += 100000;
  return t;
}

static int take(struct lock *l, int way) {
  struct timespec end = far();
  if (l->sort == MUTEXES + WRITES) return way ? mtx_lock(&l->c11) : mtx_timedlock(&l->c11, &end);
  if (l->sort >= MUTEXES) return way ? pthread_rwlock_wrlock(&l->write) : pthread_rwlock_timedwrlock(&l->write, &end);
  return way == 0 ? pthread_mutex_timedlock(&l->mutex, &end) : way == 1 ? pthread_mutex_lock(&l->mutex) : pthread_mutex_trylock(&l->mutex);
}
static int give(struct lock *l) {
  if (l->sort == MUTEXES + WRITES) return mtx_unlock(&l->c11);
  return l->sort >= MUTEXES ? pthread_rwlock_unlock(&l->write) : pthread_mutex_unlock(&l->mutex);
}
static int recursive(const struct lock *l) { return l->type == PTHREAD_MUTEX_RECURSIVE; }

#define MUST(call, l)                                                                                                    \
  do {                                                                                                                   \
    int result_ = (call);                                                                                                \
    CHECK(!result_, "sort %d type %d robust %d inherits %d shared %d: %s", (l)->sort, (l)->type, (l)->robust,            \
          (l)->inherits, (l)->shared, strerror(result_));                                                                \
  } while (0)

static void prepare(struct lock *l, int sort) {
  memset(l, 0, sizeof *l);
  l->sort = sort;
  if (sort == MUTEXES + WRITES) {
    l->type = PTHREAD_MUTEX_RECURSIVE;
    CHECK(mtx_init(&l->c11, mtx_recursive | mtx_timed) == thrd_success, "mtx_init");
    return;
  }
  if (sort >= MUTEXES) {
    pthread_rwlockattr_t attributes;
    pthread_rwlockattr_init(&attributes);
    pthread_rwlockattr_setpshared(&attributes, sort > MUTEXES);
    l->type = PTHREAD_MUTEX_NORMAL;
    MUST(pthread_rwlock_init(&l->write, &attributes), l);
    return;
  }
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  l->type = types[sort / 8], l->robust = sort >> 2 & 1, l->inherits = sort >> 1 & 1, l->shared = sort & 1;
  pthread_mutexattr_settype(&attributes, l->type);
  pthread_mutexattr_setrobust(&attributes, l->robust);
  // Not every C library has it.
  if (l->inherits) l->inherits = !pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
  pthread_mutexattr_setpshared(&attributes, l->shared);
  MUST(pthread_mutex_init(&l->mutex, &attributes), l);
}

static struct lock *each(int holder, int n) { return &places[n / SORTS][holder][n % SORTS]; }
#define EACH(l, holder) (struct lock *l, *once = 0; !once; once = &fixed[0][0]) for (int n_ = 0; n_ < PLACES * SORTS && (l = each(holder, n_)); n_++)

static void hold(int holder) {
  for EACH(l, holder) {
    MUST(take(l, l->sort >= MUTEXES ? n_ % 2 : n_ % 3), l);
    if (recursive(l)) MUST(take(l, (n_ + 1) % 2), l);
  }
}

static void let_go(int holder) {
  for EACH(l, holder) {
    if (l->type == PTHREAD_MUTEX_ERRORCHECK) CHECK(take(l, 1) == EDEADLK, "sort %d was taken again", l->sort);
    CHECK(!l->got, "sort %d was given to who waits", l->sort);
    if (recursive(l)) {
      MUST(take(l, 1), l);
      MUST(give(l), l);
      MUST(give(l), l);
    }
    MUST(give(l), l);
  }
}

static void *wait_for(void *given) {
  struct lock *l = given;
  int checks = l->type != PTHREAD_MUTEX_NORMAL || l->robust || l->inherits;
  if (l->sort < MUTEXES && checks) {
    CHECK(pthread_mutex_trylock(&l->mutex) == EBUSY, "sort %d", l->sort);
    CHECK(give(l) == EPERM, "sort %d was given back by another", l->sort);
  }
  l->waiting = (pid_t)syscall(SYS_gettid);
  MUST(take(l, l->sort % 2), l);
  l->got = 1;
  MUST(give(l), l);
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
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 64 << 10);
  for (int holder = 0; holder < HOLDERS; holder++)
    for EACH(l, holder) {
      l->waiting = l->got = 0;
      CHECK(!pthread_create(&l->waiter, &small, wait_for, l), "%m");
      while (!l->waiting) sched_yield();
      while (!asleep(l->waiting)) sched_yield();
    }
}

static void check(void) {
  pthread_barrier_wait(&leave);
  let_go(0);
  for (int holder = 0; holder < HOLDERS; holder++)
    for EACH(l, holder) CHECK(!pthread_join(l->waiter, 0), "join");
  pthread_barrier_wait(&left);
  arm();
}

int main(void) {
  struct lock stack[HOLDERS][SORTS];
  size_t size = sizeof(struct lock[SORTS]);
  pthread_t thread;
  pthread_barrier_init(&held, 0, HOLDERS);
  pthread_barrier_init(&leave, 0, HOLDERS);
  pthread_barrier_init(&left, 0, HOLDERS);
  for (int holder = 0; holder < HOLDERS; holder++) {
    places[0][holder] = fixed[holder], places[1][holder] = stack[holder], places[2][holder] = malloc(size);
    places[3][holder] = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int n = 0; n < PLACES * SORTS; n++) prepare(each(holder, n), n % SORTS);
  }
  CHECK(!pthread_create(&thread, 0, other, 0), "%m");
  arm();
  return obey(check);
}
