// SPDX-License-Identifier: LGPL-2.1-only
// lent [MODE]: threads that notice when a register, the signal mask or a sleep of theirs is not as they left it.
// With "rain", USR2 comes all the time, and has a handler.
#include "subject.h"

#include <emmintrin.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <time.h>

static volatile int stop;
static const char *volatile wrong;

static void handler(int signal) { (void)signal; }

static void *count(void *nothing) {
  sigset_t mine, now;
  sigemptyset(&mine);
  sigaddset(&mine, SIGURG);
  pthread_sigmask(SIG_SETMASK, &mine, 0);
  uint64_t a = 1, b = 1;
  double x = 1, y = 1;
  while (!stop) {
    for (int i = 0; i < 100000; i++) {
      a = a * 6364136223846793005u + 1442695040888963407u, b = b * 6364136223846793005u + 1442695040888963407u;
      x = x * 1.0000001 + 0.1, y = y * 1.0000001 + 0.1;
      if (x > 1e6) x = y = 1;
      if (a != b || x != y) wrong = "two equal sums differ";
    }
    pthread_sigmask(SIG_SETMASK, 0, &now);
    for (int signal = 1; signal < 32; signal++)
      if (sigismember(&now, signal) != sigismember(&mine, signal)) wrong = "the mask is another";
  }
  return nothing;
}

static void block_all(void) {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, 0);
}

static void *sleeper(void *nothing) {
  block_all();
  while (!stop) {
    struct timespec begin, end, time = {0, 200 * 1000 * 1000};
    clock_gettime(CLOCK_MONOTONIC, &begin);
    if (nanosleep(&time, 0)) wrong = "nanosleep was interrupted";
    clock_gettime(CLOCK_MONOTONIC, &end);
    long slept = (end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000;
    if (slept < 199) wrong = "nanosleep was too short";
  }
  return nothing;
}

static void *poller(void *nothing) {
  block_all();
  int epoll = epoll_create1(0);
  struct epoll_event event;
  while (!stop)
    if (epoll_wait(epoll, &event, 1, 100)) wrong = "epoll_wait was interrupted";
  return nothing;
}

static void check(void) { CHECK(!wrong, "%s", wrong); }

int main(void) {
  struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
  sigaction(SIGUSR2, &action, 0);
  pthread_t threads[4];
  void *(*const bodies[])(void *) = {count, count, sleeper, poller};
  for (int i = 0; i < 4; i++) CHECK(!pthread_create(threads + i, 0, bodies[i], 0), "thread");
  obey(check);
  stop = 1;
  for (int i = 0; i < 4; i++) CHECK(!pthread_join(threads[i], 0), "thread");
  check();
  return 0;
}
