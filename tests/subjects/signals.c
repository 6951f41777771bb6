// SPDX-License-Identifier: LGPL-2.1-only
// Handlers, mask, alternate stack and pending signals with what was queued with them.
#include "subject.h"
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>

struct kernel_action { void *handler; unsigned long flags; void *restorer; uint64_t mask; };
static struct kernel_action actions[65];
static sigset_t mask;
static stack_t alternate;
static unsigned generation;
static volatile int handled, on_alternate;

static void on_signal(int number, siginfo_t *siginfo, void *ucontext) {
  (void)number, (void)ucontext;
  char here;
  char *base = alternate.ss_sp;
  on_alternate = &here >= base && &here < base + alternate.ss_size;
  handled = siginfo->si_value.sival_int;
}

static struct kernel_action action_of(int number) {
  struct kernel_action action = {0};
  CHECK(!syscall(SYS_rt_sigaction, number, 0, &action, 8), "%m");
  return action;
}

static void queue(int number, int value) {
  CHECK(!sigqueue(getpid(), number, (union sigval){.sival_int = value}), "%m");
}

static void arm(void) {
  generation += 100;
  queue(SIGRTMIN + 1, generation + 4);
  for (int i = 1; i <= 3; i++) queue(SIGRTMIN, generation + i);
  queue(SIGUSR2, generation + 5);
  raise(SIGHUP);      // pending for the thread, the others for the process
}

static void expect(int number, int code, int value) {
  sigset_t all;
  siginfo_t siginfo = {0};
  sigfillset(&all);
  struct timespec now = {0};
  int got = syscall(SYS_rt_sigtimedwait, &all, &siginfo, &now, 8);      // glibc's wrapper changes SI_TKILL
  CHECK(got == number, "signal %d came instead of %d", got, number);
  CHECK(siginfo.si_code == code, "signal %d: code %d instead of %d", number, siginfo.si_code, code);
  CHECK(siginfo.si_uid == getuid(), "signal %d: uid %d", number, siginfo.si_uid);
  CHECK(value < 0 || siginfo.si_value.sival_int == value, "signal %d: value %d instead of %d", number,
        siginfo.si_value.sival_int, value);
}

static void check(void) {
  for (int i = 1; i < 65; i++) {
    struct kernel_action now = action_of(i);
    int same = !memcmp(&now, &actions[i], sizeof now);
    CHECK(i == SIGTSTP || same, "action of signal %d", i);
  }
  sigset_t mask_now;
  sigprocmask(SIG_BLOCK, 0, &mask_now);
  for (int i = 1; i < 65; i++)
    CHECK(sigismember(&mask, i) == sigismember(&mask_now, i), "mask: signal %d", i);
  stack_t stack;
  sigaltstack(0, &stack);
  CHECK(stack.ss_sp == alternate.ss_sp && stack.ss_size == alternate.ss_size && stack.ss_flags == alternate.ss_flags,
        "alternate stack: %p %zu %d", stack.ss_sp, stack.ss_size, stack.ss_flags);

  expect(SIGHUP, SI_TKILL, -1);
  expect(SIGUSR2, SI_QUEUE, generation + 5);
  for (int i = 1; i <= 3; i++) expect(SIGRTMIN, SI_QUEUE, generation + i);
  expect(SIGRTMIN + 1, SI_QUEUE, generation + 4);
  sigset_t pending;
  sigpending(&pending);
  CHECK(sigisemptyset(&pending), "a signal too many is pending");

  handled = on_alternate = 0;
  queue(SIGUSR1, 7);
  CHECK(handled == 7, "the handler did not run");
  CHECK(on_alternate, "the handler ran on the wrong stack");
  arm();
}

int main(void) {
  struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
  sigaddset(&action.sa_mask, SIGWINCH);
  sigaction(SIGUSR1, &action, 0);
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGALRM, &action, 0);
  signal(SIGINT, SIG_IGN);
  alternate = (stack_t){.ss_sp = malloc(65536), .ss_size = 65536};
  sigaltstack(&alternate, 0);
  sigemptyset(&mask);
  sigaddset(&mask, SIGHUP), sigaddset(&mask, SIGUSR2);
  sigaddset(&mask, SIGRTMIN), sigaddset(&mask, SIGRTMIN + 1);
  sigprocmask(SIG_SETMASK, &mask, 0);
  sigprocmask(SIG_BLOCK, 0, &mask);
  for (int i = 1; i < 65; i++) actions[i] = action_of(i);
  arm();
  return obey(check);
}
