// SPDX-License-Identifier: LGPL-2.1-only
// perthread [privileged]: what the kernel keeps for each thread, different in each of them. Threads that exist since
// before the checkpoint look at it themselves. "privileged" adds what only root may set.
#include "subject.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

enum { THREADS = 6, ARCH_SET_GS = 0x1001, ARCH_GET_FS = 0x1003, ARCH_GET_GS = 0x1004, IOPRIO_WHO_PROCESS = 1 };
struct robust_list { struct robust_list *next; };
struct robust_list_head { struct robust_list list; long offset; struct robust_list *pending; };
struct policy { int policy, priority; };

struct kept {
  char name[16];
  unsigned long mask, fs, gs, slack;
  stack_t stack;
  struct policy policy;
  int nice, death_signal, ioprio;
  cpu_set_t cpus;
  void *robust;
  size_t robust_size;
};

static int privileged;
static pthread_t threads[THREADS];
static pthread_barrier_t begin, end;
static volatile int leave;
static struct robust_list_head heads[THREADS];
static unsigned long gs[THREADS][2];

static long first_cpu(void) {
  cpu_set_t all;
  sched_getaffinity(getpid(), sizeof all, &all);
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, &all)) return cpu;
  return 0;
}

static void look(struct kept *now) {
  struct sched_param param;
  uint64_t mask = 0;
  memset(now, 0, sizeof *now);
  CHECK(!prctl(PR_GET_NAME, now->name), "%m");
  CHECK(!syscall(SYS_rt_sigprocmask, SIG_BLOCK, 0, &mask, 8), "%m");
  now->mask = mask;
  CHECK(!sigaltstack(0, &now->stack), "%m");
  now->policy.policy = syscall(SYS_sched_getscheduler, 0);
  CHECK(!syscall(SYS_sched_getparam, 0, &param), "%m");
  now->policy.priority = param.sched_priority;
  errno = 0;
  now->nice = getpriority(PRIO_PROCESS, 0);
  CHECK(!errno, "%m");
  CHECK(!prctl(PR_GET_PDEATHSIG, &now->death_signal), "%m");
  now->slack = prctl(PR_GET_TIMERSLACK);
  now->ioprio = syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0);
  CHECK(!sched_getaffinity(0, sizeof now->cpus, &now->cpus), "%m");
  CHECK(!syscall(SYS_get_robust_list, 0, &now->robust, &now->robust_size), "%m");
  CHECK(!syscall(SYS_arch_prctl, ARCH_GET_FS, &now->fs), "%m");
  CHECK(!syscall(SYS_arch_prctl, ARCH_GET_GS, &now->gs), "%m");
}

#define SAME(what, format)                                                                                             \
  CHECK(was.what == is.what, "thread %d: " format " instead of " format, me, is.what, was.what)

static void compare(int me, struct kept was, struct kept is) {
  CHECK(!strcmp(was.name, is.name), "thread %d is called %s instead of %s", me, is.name, was.name);
  SAME(mask, "mask %lx");
  SAME(stack.ss_sp, "alternate stack at %p");
  SAME(stack.ss_size, "alternate stack of %zu bytes");
  SAME(stack.ss_flags, "alternate stack with flags %x");
  SAME(policy.policy, "policy %x");
  SAME(policy.priority, "priority %d");
  SAME(nice, "nice value %d");
  SAME(death_signal, "parent-death signal %d");
  SAME(slack, "timer slack %lu");
  SAME(ioprio, "I/O priority %x");
  CHECK(CPU_EQUAL(&was.cpus, &is.cpus), "thread %d: affinity to %d CPUs", me, CPU_COUNT(&is.cpus));
  SAME(robust, "robust list at %p");
  SAME(robust_size, "robust list head of %zu bytes");
  SAME(fs, "FS %lx");
  SAME(gs, "GS %lx");
}

static void set_schedule(int me) {
  static const struct policy free_choice[] = {{SCHED_OTHER, 0}, {SCHED_BATCH, 0}, {SCHED_IDLE, 0}};
  static const struct policy roots[] = {{SCHED_FIFO, 1}, {SCHED_RR, 2}, {SCHED_FIFO | SCHED_RESET_ON_FORK, 3}};
  const struct policy *choice = privileged && me >= 3 ? &roots[me - 3] : &free_choice[me % 3];
  struct sched_param param = {.sched_priority = choice->priority};
  CHECK(!syscall(SYS_sched_setscheduler, 0, choice->policy, &param), "%m");
  // Without privileges SCHED_IDLE is never left again, and nice values only rise.
  int nice = getpriority(PRIO_PROCESS, 0) + me;
  CHECK(!setpriority(PRIO_PROCESS, 0, privileged && me == 0 ? -5 : nice), "%m");
  CHECK(!syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, 2 << 13 | (me + 1)), "%m");
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(first_cpu(), &cpus);
  if (me % 2) CHECK(!sched_setaffinity(0, sizeof cpus, &cpus), "%m");
}

static void set(int me) {
  char name[16];
  snprintf(name, sizeof name, "thread no %d", me);
  CHECK(!prctl(PR_SET_NAME, name), "%m");
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGRTMIN + me), sigaddset(&mask, SIGUSR1);
  CHECK(!pthread_sigmask(SIG_SETMASK, &mask, 0), "mask");
  stack_t stack = {.ss_sp = malloc(32768 + 4096 * me), .ss_size = 32768 + 4096 * me};
  if (me != 1) CHECK(!sigaltstack(&stack, 0), "%m");
  CHECK(!prctl(PR_SET_TIMERSLACK, 60000 + 1000 * me), "%m");
  CHECK(!prctl(PR_SET_PDEATHSIG, me ? SIGRTMIN + 8 + me : 0), "%m");
  set_schedule(me);
  gs[me][0] = 0xabc0 + me;
  CHECK(!syscall(SYS_arch_prctl, ARCH_SET_GS, gs[me]), "%m");
  if (me == 2) {
    heads[me].list.next = &heads[me].list;
    CHECK(!syscall(SYS_set_robust_list, &heads[me], sizeof heads[me]), "%m");
  }
}

// A signal that only this thread can have: sent to it while it blocks it, with a value.
static void queue(int me, int value) {
  siginfo_t sent = {.si_signo = SIGRTMIN + me, .si_code = SI_QUEUE, .si_uid = getuid(), .si_pid = getpid()};
  sent.si_value.sival_int = value;
  CHECK(!syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), SIGRTMIN + me, &sent), "%m");
}

static void take(int me, int value) {
  siginfo_t got = {0};
  sigset_t mask;
  struct timespec now = {0};
  sigemptyset(&mask);
  sigaddset(&mask, SIGRTMIN + me);
  int number = syscall(SYS_rt_sigtimedwait, &mask, &got, &now, 8);
  CHECK(number == SIGRTMIN + me, "thread %d: no queued signal, %d: %m", me, number);
  CHECK(got.si_value.sival_int == value && got.si_code == SI_QUEUE, "thread %d: value %d, code %d", me,
        got.si_value.sival_int, got.si_code);
}

static void *run(void *number) {
  int me = (int)(long)number;
  struct kept was, is;
  set(me);
  look(&was);
  queue(me, 10 + me), queue(me, 20 + me);
  for (;;) {
    pthread_barrier_wait(&begin);
    // Everybody has its own ids: nobody sees another's thread-local memory or signals.
    if (leave) return 0;
    look(&is);
    compare(me, was, is);
    unsigned long value;
    __asm__ volatile("movq %%gs:0, %0" : "=r"(value));
    CHECK(value == 0xabc0ul + me, "thread %d: %%gs:0 is %lx", me, value);
    take(me, 10 + me), take(me, 20 + me);
    queue(me, 10 + me), queue(me, 20 + me);
    pthread_barrier_wait(&end);
  }
}

static void check(void) {
  pthread_barrier_wait(&begin);
  pthread_barrier_wait(&end);
}

int main(int argc, char **argv) {
  privileged = argc == 2 && !strcmp(argv[1], "privileged");
  pthread_barrier_init(&begin, 0, THREADS + 1);
  pthread_barrier_init(&end, 0, THREADS + 1);
  for (long i = 0; i < THREADS; i++) CHECK(!pthread_create(&threads[i], 0, run, (void *)i), "%m");
  check();
  int result = obey(check);
  leave = 1;
  pthread_barrier_wait(&begin);
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], 0);
  return result;
}
