// SPDX-License-Identifier: LGPL-2.1-only
// blocked CALL: blocks all signals and sleeps in CALL with a time limit. It must neither end early nor with EINTR.
#include "subject.h"

#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>

enum { FUTEX_WAIT = 0 };
static const long LIMIT_MS = 1500;
static struct timespec limit = {1, 500 * 1000 * 1000};
static int pair[2], epoll, semaphore;

static long ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static long sleep_in(const char *call) {
  struct pollfd fd = {.fd = pair[0], .events = POLLIN};
  if (!strcmp(call, "nanosleep")) return nanosleep(&limit, 0);
  if (!strcmp(call, "clock_nanosleep")) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += 1, until.tv_nsec += limit.tv_nsec;
    if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
    return -(errno = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, 0));
  }
  if (!strcmp(call, "poll")) return poll(&fd, 1, LIMIT_MS);
  if (!strcmp(call, "ppoll")) return ppoll(&fd, 1, &limit, 0);
  if (!strcmp(call, "select")) {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(pair[0], &set);
    struct timeval value = {1, 500000};
    return select(pair[0] + 1, &set, 0, 0, &value);
  }
  if (!strcmp(call, "epoll_wait")) {
    struct epoll_event event;
    return epoll_wait(epoll, &event, 1, LIMIT_MS);
  }
  if (!strcmp(call, "sigtimedwait")) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    return sigtimedwait(&set, 0, &limit) < 0 && errno == EAGAIN ? 0 : -1;
  }
  if (!strcmp(call, "semtimedop")) {
    struct sembuf take = {.sem_op = -1};
    return semtimedop(semaphore, &take, 1, &limit) < 0 && errno == EAGAIN ? 0 : -1;
  }
  if (!strcmp(call, "recv")) {
    char byte;
    return recv(pair[0], &byte, 1, 0) < 0 && errno == EAGAIN ? 0 : -1;
  }
  if (!strcmp(call, "read")) {
    char byte;
    return read(pair[0], &byte, 1) < 0 && errno == EAGAIN ? 0 : -1;
  }
  if (!strcmp(call, "write")) {
    static const char bytes[4096];
    while (send(pair[0], bytes, sizeof bytes, MSG_DONTWAIT) > 0) {}
    return write(pair[0], bytes, sizeof bytes) < 0 && errno == EAGAIN ? 0 : -1;
  }
  if (!strcmp(call, "futex")) {
    static int word;
    return syscall(SYS_futex, &word, FUTEX_WAIT, 0, &limit, 0, 0) < 0 && errno == ETIMEDOUT ? 0 : -1;
  }
  CHECK(0, "no call %s", call);
  return -1;
}

// Sleeping calls that need no descriptor or kernel object beyond the first part's open nothing.
static void prepare(const char *call) {
  if (!strcmp(call, "semtimedop")) {
    semaphore = semget(IPC_PRIVATE, 1, 0600);
    CHECK(semaphore >= 0, "%m");
    return;
  }
  if (strcmp(call, "poll") && strcmp(call, "ppoll") && strcmp(call, "select") && strcmp(call, "epoll_wait") &&
      strcmp(call, "recv") && strcmp(call, "read") && strcmp(call, "write"))
    return;
  CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "%m");
  struct timeval value = {1, 500000};
  setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &value, sizeof value);
  setsockopt(pair[0], SOL_SOCKET, SO_SNDTIMEO, &value, sizeof value);
  if (strcmp(call, "epoll_wait")) return;
  epoll = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN};
  epoll_ctl(epoll, EPOLL_CTL_ADD, pair[0], &event);
}

int main(int argc, char **argv) {
  CHECK(argc == 2, "usage: blocked CALL");
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, 0);
  prepare(argv[1]);
  say("ready\n");
  long begin = ms();
  errno = 0;
  long result = sleep_in(argv[1]);
  int error = errno;
  long slept = ms() - begin;
  if (!strcmp(argv[1], "semtimedop")) semctl(semaphore, 0, IPC_RMID);
  errno = error;
  CHECK(result == 0, "%s gave %ld: %m", argv[1], result);
  CHECK(slept >= LIMIT_MS - 1, "%s ended after %ld ms", argv[1], slept);
  return 0;
}
