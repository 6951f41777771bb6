// SPDX-License-Identifier: LGPL-2.1-only
// What POSIX threads offer, used by threads that exist since before the checkpoint: each check gives every worker its
// orders, ends threads that others wait for, and makes new ones.
#include "subject.h"
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

enum { WORKERS = 4 };
typedef void (*order)(int);
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER, recursive, checking;
static pthread_cond_t orders_came = PTHREAD_COND_INITIALIZER, order_done = PTHREAD_COND_INITIALIZER, timed;
static pthread_rwlock_t shared = PTHREAD_RWLOCK_INITIALIZER;
static pthread_barrier_t barrier;
static pthread_key_t key;
static pthread_t workers[WORKERS], joiner, awaited, victim;
static order current;
static unsigned generation, done, destroyed, cleaned, depth, counted;
static int awaited_may_end, victim_sleeps, awaited_lives;
static volatile int signalled[WORKERS], raised[WORKERS];
static __thread int own = -1;

#define MUST(call)                                                                                                     \
  do {                                                                                                                 \
    int failure = (call);                                                                                              \
    CHECK(failure == 0, "%s", strerror(failure));                                                                      \
  } while (0)

static void on_signal(int number) {
  int me = own;
  if (me < 0 || !pthread_equal(pthread_self(), workers[me])) _exit(3);
  (number == SIGUSR1 ? signalled : raised)[me]++;
}

static void destroy(void *value) {
  CHECK(value == &destroyed, "destructor of %p", value);
  __atomic_add_fetch(&destroyed, 1, __ATOMIC_SEQ_CST);
}

static void clean(void *value) {
  (void)value;
  __atomic_add_fetch(&cleaned, 1, __ATOMIC_SEQ_CST);
}

static struct timespec soon(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  t.tv_nsec += 20 * 1000 * 1000;
  if (t.tv_nsec >= 1000000000) t.tv_sec++, t.tv_nsec -= 1000000000;
  return t;
}

static void *nothing(void *value) {
  pthread_setspecific(key, &destroyed);
  return value;
}

static void make_and_join(void) {
  for (long i = 0; i < 4; i++) {
    pthread_t thread;
    void *value = 0;
    unsigned before = __atomic_load_n(&destroyed, __ATOMIC_SEQ_CST);
    MUST(pthread_create(&thread, 0, nothing, (void *)i));
    MUST(pthread_join(thread, &value));
    CHECK(value == (void *)i, "a new thread gave %p", value);
    CHECK(__atomic_load_n(&destroyed, __ATOMIC_SEQ_CST) > before, "no destructor of a new thread ran");
  }
}

static void fork_and_wait(int me) {
  pid_t child = fork();
  CHECK(child >= 0, "%m");
  if (!child) {
    if (getpid() != syscall(SYS_getpid) || syscall(SYS_gettid) != getpid() || own != me) _exit(4);
    make_and_join();
    pthread_mutex_lock(&recursive), pthread_mutex_lock(&recursive);
    if (raise(SIGCONT)) _exit(5);
    _exit(7);
  }
  int status;
  pid_t got;
  while ((got = waitpid(child, &status, 0)) < 0 && errno == EINTR) {}
  CHECK(got == child, "%m");
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7, "the child of thread %d ended with %x", me, status);
}

static void use_mutexes(int me) {
  (void)me;
  for (int round = 0; round < 50; round++) {
    MUST(pthread_mutex_lock(&recursive));
    MUST(pthread_mutex_lock(&recursive));
    CHECK(depth++ == 0, "two threads hold the recursive mutex");
    MUST(pthread_mutex_trylock(&recursive));
    depth--;
    for (int i = 0; i < 3; i++) MUST(pthread_mutex_unlock(&recursive));
    MUST(pthread_mutex_lock(&checking));
    CHECK(pthread_mutex_lock(&checking) == EDEADLK, "the error-checking mutex does not know its owner");
    MUST(pthread_mutex_unlock(&checking));
    CHECK(pthread_mutex_unlock(&checking) == EPERM, "an unlocked mutex was unlocked");
    MUST(pthread_rwlock_wrlock(&shared));
    counted++;
    MUST(pthread_rwlock_unlock(&shared));
    MUST(pthread_rwlock_rdlock(&shared));
    MUST(pthread_rwlock_unlock(&shared));
  }
  CHECK(pthread_mutex_unlock(&recursive) == EPERM, "a foreign mutex was unlocked");
}

static void meet(int me) {
  (void)me;
  static unsigned before;
  for (int round = 0; round < 3; round++) {
    __atomic_add_fetch(&before, 1, __ATOMIC_SEQ_CST);
    pthread_barrier_wait(&barrier);
    CHECK(__atomic_load_n(&before, __ATOMIC_SEQ_CST) % (WORKERS + 1) == 0, "the barrier opened for %u", before);
    pthread_barrier_wait(&barrier);
  }
}

static void wait_in_vain(int me) {
  (void)me;
  struct timespec until = soon(CLOCK_MONOTONIC);
  pthread_mutex_t mine = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t never = PTHREAD_COND_INITIALIZER;
  MUST(pthread_mutex_lock(&mine));
  int result;
  do result = pthread_cond_timedwait(&timed, &mine, &until);
  while (!result);
  CHECK(result == ETIMEDOUT, "%s", strerror(result));
  until = soon(CLOCK_REALTIME);
  do result = pthread_cond_timedwait(&never, &mine, &until);
  while (!result);
  CHECK(result == ETIMEDOUT, "%s", strerror(result));
  MUST(pthread_mutex_unlock(&mine));
}

static void raise_here(int me) {
  int before = raised[me];
  MUST(raise(SIGUSR2));
  CHECK(raised[me] == before + 1, "raise() went to another thread than %d", me);
  clockid_t clock;
  struct timespec t;
  MUST(pthread_getcpuclockid(pthread_self(), &clock));
  CHECK(!clock_gettime(clock, &t), "the CPU clock of thread %d: %m", me);
}

static void make_more(int me) { (void)me, make_and_join(); }

static void *work(void *number) {
  own = (int)(long)number;
  unsigned seen = 0;
  for (;;) {
    pthread_mutex_lock(&gate);
    while (generation == seen) pthread_cond_wait(&orders_came, &gate);
    seen = generation;
    order now = current;
    pthread_mutex_unlock(&gate);
    if (now) now(own);
    pthread_mutex_lock(&gate);
    done++;
    pthread_cond_signal(&order_done);
    pthread_mutex_unlock(&gate);
    if (!now) return (void *)(0x100l + own);
  }
}

static void begin(order now) {
  pthread_mutex_lock(&gate);
  current = now, generation++, done = 0;
  pthread_cond_broadcast(&orders_came);
  pthread_mutex_unlock(&gate);
}

static void finish(void) {
  pthread_mutex_lock(&gate);
  while (done < WORKERS) pthread_cond_wait(&order_done, &gate);
  pthread_mutex_unlock(&gate);
}

static void all(order now) { begin(now), finish(); }

// The thread that another one waits for in pthread_join.
static void *wait_for_leave(void *value) {
  pthread_setspecific(key, &destroyed);
  pthread_mutex_lock(&gate);
  awaited_lives = 1;
  pthread_cond_broadcast(&order_done);
  while (!awaited_may_end) pthread_cond_wait(&orders_came, &gate);
  pthread_mutex_unlock(&gate);
  return value;
}

static void *join_it(void *value) {
  void *result = 0;
  MUST(pthread_join(awaited, &result));
  CHECK(result == (void *)0x77, "the awaited thread gave %p", result);
  return value;
}

static void *sleep_for_ever(void *value) {
  pthread_setspecific(key, &destroyed);
  pthread_cleanup_push(clean, 0);
  pthread_mutex_lock(&gate);
  victim_sleeps = 1;
  pthread_cond_broadcast(&order_done);
  pthread_mutex_unlock(&gate);
  for (;;) pause();
  pthread_cleanup_pop(0);
  return value;
}

static void make_waiters(void) {
  awaited_may_end = awaited_lives = victim_sleeps = 0;
  MUST(pthread_create(&awaited, 0, wait_for_leave, (void *)0x77));
  MUST(pthread_create(&joiner, 0, join_it, (void *)0x78));
  MUST(pthread_create(&victim, 0, sleep_for_ever, 0));
  pthread_mutex_lock(&gate);
  while (!victim_sleeps || !awaited_lives) pthread_cond_wait(&order_done, &gate);
  pthread_mutex_unlock(&gate);
}

static void end_waiters(void) {
  unsigned dead = destroyed, clean_now = cleaned;
  void *result = 0;
  pthread_mutex_lock(&gate);
  awaited_may_end = 1;
  pthread_cond_broadcast(&orders_came);
  pthread_mutex_unlock(&gate);
  MUST(pthread_join(joiner, &result));
  CHECK(result == (void *)0x78, "the joiner gave %p", result);
  MUST(pthread_cancel(victim));
  MUST(pthread_join(victim, &result));
  CHECK(result == PTHREAD_CANCELED, "the cancelled thread gave %p", result);
  CHECK(cleaned == clean_now + 1, "%u clean-ups", cleaned - clean_now);
  CHECK(destroyed == dead + 2, "%u destructors", destroyed - dead);
}

static void check(void) {
  int before[WORKERS];
  for (int i = 0; i < WORKERS; i++) before[i] = signalled[i];
  for (int i = 0; i < WORKERS; i++) MUST(pthread_kill(workers[i], SIGUSR1));
  begin(meet), meet(-1), finish();
  for (int i = 0; i < WORKERS; i++)
    while (signalled[i] == before[i]) sched_yield();
  counted = 0;
  all(use_mutexes);
  CHECK(counted == WORKERS * 50, "%u turns under the write lock", counted);
  all(wait_in_vain);
  all(raise_here);
  all(fork_and_wait);
  all(make_more);
  fork_and_wait(-1);
  end_waiters();
  make_waiters();
}

int main(void) {
  pthread_mutexattr_t kind;
  pthread_mutexattr_init(&kind);
  pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_RECURSIVE);
  pthread_mutex_init(&recursive, &kind);
  pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_ERRORCHECK);
  pthread_mutex_init(&checking, &kind);
  pthread_condattr_t monotonic;
  pthread_condattr_init(&monotonic);
  pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
  pthread_cond_init(&timed, &monotonic);
  pthread_barrier_init(&barrier, 0, WORKERS + 1);
  MUST(pthread_key_create(&key, destroy));
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
  sigaction(SIGUSR1, &action, 0), sigaction(SIGUSR2, &action, 0);
  for (long i = 0; i < WORKERS; i++) MUST(pthread_create(&workers[i], 0, work, (void *)i));
  all(use_mutexes);
  make_waiters();
  int result = obey(check);
  end_waiters();
  all(0);
  for (int i = 0; i < WORKERS; i++) {
    void *value = 0;
    MUST(pthread_join(workers[i], &value));
    CHECK(value == (void *)(0x100l + i), "worker %d gave %p", i, value);
  }
  return result;
}
