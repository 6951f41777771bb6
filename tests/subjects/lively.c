// SPDX-License-Identifier: LGPL-2.1-only
// Has something of everything that a restart gives back by orders to the kernel: threads, signals that wait in both queues,
// interval and POSIX timers, an epoll watch, an alternate stack.
#include "subject.h"
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

static int watch, ends[2];
static pthread_barrier_t begin;

static void *other(void *unused) {
  for (;;) pthread_barrier_wait(&begin);
  return unused;
}

static void check(void) {
  pthread_barrier_wait(&begin);
  struct epoll_event event;
  CHECK(epoll_wait(watch, &event, 1, 60000) == 1 && event.data.u32 == 7, "%m");
  sigset_t waiting;
  sigpending(&waiting);
  CHECK(sigismember(&waiting, SIGUSR1) && sigismember(&waiting, SIGUSR2), "a signal is lost");
}

int main(void) {
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR1), sigaddset(&blocked, SIGUSR2);
  sigprocmask(SIG_BLOCK, &blocked, 0);
  kill(getpid(), SIGUSR1);
  raise(SIGUSR2);
  stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
  CHECK(!sigaltstack(&stack, 0), "%m");
  struct itimerval far = {.it_value = {5000, 0}};
  CHECK(!setitimer(ITIMER_REAL, &far, 0), "%m");
  struct sigevent silent = {.sigev_notify = SIGEV_NONE};
  timer_t timer;
  CHECK(!timer_create(CLOCK_MONOTONIC, &silent, &timer), "%m");
  CHECK(!pipe(ends) && write(ends[1], "x", 1) == 1, "%m");
  watch = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN, .data.u32 = 7};
  CHECK(watch >= 0 && !epoll_ctl(watch, EPOLL_CTL_ADD, ends[0], &event), "%m");
  pthread_barrier_init(&begin, 0, 2);
  pthread_t thread;
  CHECK(!pthread_create(&thread, 0, other, 0), "%m");
  return obey(check);
}
