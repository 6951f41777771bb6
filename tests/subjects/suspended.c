// SPDX-License-Identifier: LGPL-2.1-only
// suspended CALL: the main thread, which blocks nothing, waits in CALL with a mask that blocks SIGUSR1, which is pending.
// Only SIGUSR2 may end that, with EINTR; then SIGUSR1 comes, too, and the mask is the thread's own again.
#include "subject.h"
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/wait.h>

static const char *call;
static volatile int first, second, ended;
static pthread_t waiter;
static int result, error;

static void count(int signal) { *(signal == SIGUSR1 ? &first : &second) += 1; }

static int suspend(void) {
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR1);
  sigaddset(&mask, SIGTSTP);
  if (!strcmp(call, "sigsuspend")) return sigsuspend(&mask);
  if (!strcmp(call, "ppoll")) return ppoll(0, 0, &(struct timespec){1000, 0}, &mask);
  if (!strcmp(call, "pselect")) return pselect(0, 0, 0, 0, 0, &mask);
  struct epoll_event event;
  int epoll = epoll_create1(0);
  if (!strcmp(call, "epoll_pwait")) return epoll_pwait(epoll, &event, 1, 1000000, &mask);
  CHECK(0, "no call %s", call);
  return 0;
}

static void check(void) {
  while (!ended && !asleep(getpid())) sched_yield();
  CHECK(!ended, "%s ended with %d (%d) after SIGUSR1 %d times, SIGUSR2 %d times", call, result, error, first, second);
  CHECK(!first, "the handler of a signal ran that %s blocks", call);
}

static void *command(void *unused) {
  while (!asleep(getpid())) sched_yield();
  CHECK(!pthread_kill(waiter, SIGUSR1), "%m");
  int status = obey(check);
  CHECK(!pthread_kill(waiter, SIGUSR2), "%m");
  while (!ended) sched_yield();
  CHECK(result == -1 && error == EINTR && second == 1 && first == 1, "%d (%d), %d, %d", result, error, first, second);
  (void)unused;
  exit(status);
}

int main(int argc, char **argv) {
  CHECK(argc == 2, "usage: suspended CALL");
  call = argv[1];
  waiter = pthread_self();
  struct sigaction action = {.sa_handler = count};
  CHECK(!sigaction(SIGUSR1, &action, 0) && !sigaction(SIGUSR2, &action, 0), "%m");
  // The checkpoint signal is for the other thread.
  sigset_t own, now;
  sigemptyset(&own);
  pthread_t commander;
  CHECK(!pthread_create(&commander, 0, command, 0), "%m");
  sigaddset(&own, SIGTSTP);
  CHECK(!pthread_sigmask(SIG_SETMASK, &own, 0), "%m");
  result = suspend();
  error = errno;
  CHECK(!pthread_sigmask(SIG_SETMASK, 0, &now), "%m");
  for (int signal = 1; signal < 32; signal++)
    CHECK(sigismember(&now, signal) == (signal == SIGTSTP), "signal %d in the mask afterwards", signal);
  ended = 1;
  pthread_join(commander, 0);
}
