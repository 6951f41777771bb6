// SPDX-License-Identifier: LGPL-2.1-only
// sandbox KIND: what a program has locked itself in (seccomp(2)), with a look at that after each command.
//   chain     three filters: the second logs, and lets the third be installed by prctl(2) only
//   threads   all threads have a filter from one (TSYNC), which gives them another at each look
//   apart     each of two threads has one of its own
//   strict    strict mode, of the only thread
//   late      the same, when it is told to ("lock")
//   dropped   a filter of root, which has given up its rights since and not set no_new_privs
//   child     a filter in a child alone
//   sleeps    a filter that ends the program for restart_syscall(2), and a thread that sleeps all the time
//   waits     a thread waits in sigsuspend(2) that blocks a signal which has come
//   forbidden the same without the signal, and rt_sigprocmask(2) ends the program
//   fifo      a filter for three real-time threads (SCHED_FIFO) on one processor
//   unmeant   the same, and futex(2) is forbidden
//   untold    a filter that ends the program when it gives others a filter (TSYNC), for three threads
//   notify    a call is left to a supervisor
//   mute      rt_sigreturn(2) is forbidden
//   full      a filter that forbids execveat(2), and as many others as the kernel lets it have
#include "subject.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#define FORBID(call, how) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1), BPF_STMT(BPF_RET | BPF_K, how)
#define PRCTL ~0u

static const char *kind;
static _Atomic int ready, seen, turn;
static pid_t child;
static _Atomic pid_t waiting;
static volatile sig_atomic_t caught;

static int is(const char *word) { return !strcmp(kind, word); }

static int fails(long result, int error) { return result == -1 && errno == error; }

// One call is answered in some way (an error number, if it is small), restart_syscall(2) ends the program.
static long forbid(unsigned call, unsigned how, unsigned flags) {
  struct sock_filter rules[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
      FORBID(call, how < 4096 ? SECCOMP_RET_ERRNO | how : how),
      FORBID(SYS_restart_syscall, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog filter = {sizeof rules / sizeof *rules, rules};
  if (flags == PRCTL) return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
  return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter);
}

static int number(void) {
  char line[256];
  int found = -1;
  FILE *file = fopen("/proc/thread-self/status", "r");
  while (file && fgets(line, sizeof line, file)) sscanf(line, "Seccomp_filters: %d", &found);
  if (file) fclose(file);
  return found;
}

static void *other(void *own) {
  if (own) CHECK(!forbid(SYS_getsid, 77, 0), "%m");
  for (int last = 0;; last = turn) {
    ready++;
    while (turn == last) sched_yield();
    CHECK(fails(syscall(SYS_getpgid, 0), 71) != is("apart"), "%m");
    CHECK(fails(syscall(SYS_getsid, 0), 77) == is("apart"), "%m");
    if (is("threads")) CHECK(fails(syscall(SYS_getppid), 100 + turn), "%m");
    seen++;
  }
  return 0;
}

static void *sleeper(void *unused) {
  for (ready = 1;;) {
    struct timespec time = {0, 30 * 1000 * 1000};
    CHECK(!syscall(SYS_nanosleep, &time, 0), "%m");
  }
  return unused;
}

static void handle(int signal) { caught = signal; }

static void *waiter(void *unused) {
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR1);
  waiting = gettid();
  for (;;) sigsuspend(&mask);
  return unused;
}

static void wait_for_nothing(void) {
  pthread_t thread;
  signal(SIGUSR1, handle);
  CHECK(!pthread_create(&thread, 0, waiter, 0), "%m");
  while (!waiting || !asleep(waiting)) sched_yield();
  if (is("waits")) CHECK(!syscall(SYS_tgkill, getpid(), waiting, SIGUSR1), "%m");
}

static int is_fifo(void) { return is("fifo") || is("unmeant"); }

// Real-time threads wait in the kernel for each other.
static int orders[3][2], answers[2];

static void *worker(void *own) {
  char byte;
  const int in = ((int *)own)[0];
  while (read(in, &byte, 1) == 1) {
    CHECK(fails(syscall(SYS_getpgid, 0), 71), "%m");
    CHECK(!is_fifo() || sched_getscheduler(0) == SCHED_FIFO, "%m");
    CHECK(fails(syscall(SYS_futex, &byte, 1, 1, 0, 0, 0), 75) == is("unmeant"), "%m");
    CHECK(write(answers[1], &byte, 1) == 1, "%m");
  }
  return 0;
}

static void begin_workers(void) {
  pthread_t thread;
  // Whoever spins is ended before it is a nuisance.
  const struct rlimit most = {1000 * 1000, 1000 * 1000};
  const struct sched_param first = {1};
  cpu_set_t one, all;
  CHECK(!sched_getaffinity(0, sizeof all, &all), "%m");
  CPU_ZERO(&one);
  for (int cpu = 0; CPU_COUNT(&one) == 0; cpu++)
    if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
  if (is_fifo()) {
    CHECK(!setrlimit(RLIMIT_RTTIME, &most) && !sched_setaffinity(0, sizeof one, &one), "%m");
    CHECK(!sched_setscheduler(0, SCHED_FIFO, &first), "%m");
  }
  CHECK(!pipe(answers), "%m");
  for (int i = 0; i < 3; i++)
    CHECK(!pipe(orders[i]) && !pthread_create(&thread, 0, worker, orders[i]), "%m");
}

static void ask_workers(void) {
  char bytes[3];
  for (int i = 0; i < 3; i++) CHECK(write(orders[i][1], "", 1) == 1, "%m");
  for (int i = 0; i < 3; i++) CHECK(read(answers[0], bytes + i, 1) == 1, "%m");
}

// Who gives a filter to others is ended.
static void forbid_tsync(void) {
  struct sock_filter rules[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_seccomp, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 24),
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, SECCOMP_FILTER_FLAG_TSYNC, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog filter = {sizeof rules / sizeof *rules, rules};
  CHECK(!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter), "%m");
}

static void check(void) {
  CHECK(!caught, "%d", caught);
  if (!is("child")) CHECK(fails(syscall(SYS_getpgid, 0), 71), "%m");
  if (is_fifo() || is("untold")) ask_workers();
  if (is("chain")) {
    CHECK(fails(syscall(SYS_getsid, 0), 72) && number() == 3, "%d", number());
    CHECK(fails(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, 0), 73), "%m");
  }
  if (is("threads") || is("apart")) {
    const int all = is("threads") ? 3 : 1;
    if (is("threads")) CHECK(!forbid(SYS_getppid, (unsigned)(101 + turn), SECCOMP_FILTER_FLAG_TSYNC), "%m");
    ready = 0;
    seen = 0;
    turn++;
    while (seen < all || ready < all) sched_yield();
    CHECK(is("threads") || getsid(0) >= 0, "%m");
  }
  if (is("dropped")) {
    CHECK(!prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) && getuid() == 65534, "%m");
    CHECK(fails(forbid(SYS_getsid, 72, 0), EACCES), "%m");
  }
  if (is("child")) CHECK(number() == 0 && waitpid(child, 0, WNOHANG) == 0, "%m");
}

static void be_strict(void) {
  char line[64];
  if (is("late")) {
    say("ready\n");
    hear(line, sizeof line);
  }
  CHECK(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT), "%m");
  say(is("late") ? "locked\n" : "ready\n");
  for (;;) {
    hear(line, sizeof line);
    if (!strcmp(line, "go")) syscall(SYS_exit, 0);
    say("ok\n");
  }
}

// The limit is on all instructions together.
static void fill_up(void) {
  static struct sock_filter rules[4096];
  for (int i = 0; i < 4096; i++) rules[i] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  for (unsigned short length = 4096; length > 0; length /= 8) {
    struct sock_fprog filter = {length, rules};
    while (!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter)) continue;
    CHECK(errno == ENOMEM, "%m");
  }
}

int main(int argc, char **argv) {
  CHECK(argc > 1, "no kind");
  kind = argv[1];
  pthread_t thread;
  if (is("strict") || is("late")) be_strict();
  if (!is("dropped")) CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "%m");
  const long threads = is("threads") ? 3 : is("apart");
  for (long i = 0; i < threads; i++) CHECK(!pthread_create(&thread, 0, other, is("apart") ? &thread : 0), "%m");
  while (ready < threads) sched_yield();
  if (is("child") && !(child = fork())) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    CHECK(!forbid(SYS_getpgid, 71, 0), "%m");
    for (;;) CHECK(!usleep(10000) && fails(syscall(SYS_getpgid, 0), 71), "%m");
  }
  if (is("sleeps")) {
    CHECK(!pthread_create(&thread, 0, sleeper, 0), "%m");
    while (!ready) sched_yield();
  }
  const int waits = is("waits") || is("forbidden");
  if (waits) wait_for_nothing();
  if (is_fifo()) begin_workers();
  if (is("untold")) forbid_tsync();
  if (!is("child")) CHECK(!forbid(SYS_getpgid, 71, is("threads") || is("sleeps") || is_fifo() || waits), "%m");
  if (is("forbidden")) CHECK(!forbid(SYS_rt_sigprocmask, SECCOMP_RET_KILL_PROCESS, SECCOMP_FILTER_FLAG_TSYNC), "%m");
  if (is("untold")) begin_workers();
  if (is("unmeant")) CHECK(!forbid(SYS_futex, 75, SECCOMP_FILTER_FLAG_TSYNC), "%m");
  if (is("chain")) CHECK(!forbid(SYS_seccomp, 73, SECCOMP_FILTER_FLAG_LOG) && !forbid(SYS_getsid, 72, PRCTL), "%m");
  if (is("dropped")) CHECK(!setgid(65534) && !setuid(65534), "%m");
  if (is("notify")) CHECK(forbid(SYS_getsid, SECCOMP_RET_USER_NOTIF, SECCOMP_FILTER_FLAG_NEW_LISTENER) > 0, "%m");
  if (is("mute")) CHECK(!forbid(SYS_rt_sigreturn, 1, 0), "%m");
  if (is("full")) CHECK(!forbid(SYS_execveat, 1, 0), "%m");
  if (is("full")) fill_up();
  return obey(check);
}
