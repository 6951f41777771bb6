// SPDX-License-Identifier: LGPL-2.1-only
// family ROLE: a program with relatives, which it knows all of.
//   vfork GATE    has a child by vfork(2), which executes a program that exits with 7 when GATE exists
//   orphans       adopts (PR_SET_CHILD_SUBREAPER) what a helper orphans all the time; none may be lost
//   wall          a thread waits for any child of any kind all the time, and there is none
//   blocked       threads that block all signals sleep in epoll_wait(2), which must never end with EINTR
#include "subject.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static volatile int leave, met;
static volatile long turns;
static const char *gate;

// Only system calls: the child shares memory and stack with its parent.
static void *part(void *unused) {
  sigset_t none;
  sigemptyset(&none);
  pthread_sigmask(SIG_SETMASK, &none, 0);
  pid_t child = vfork();
  if (child == 0) {
    while (access(gate, F_OK)) usleep(2000);
    execl("/bin/sh", "sh", "-c", "exit 7", (char *)0);
    _exit(8);
  }
  int status = 0;
  CHECK(child > 0 && waitpid(child, &status, 0) == child, "%m");
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7, "the child ended with %x", status);
  return unused;
}

static void *wall(void *unused) {
  while (!leave) {
    int status;
    pid_t child = waitpid(-1, &status, __WALL);
    CHECK(child < 0 && (errno == ECHILD || errno == EINTR), "a child %d that is not ours", child);
    turns++;
  }
  return unused;
}

static void *blocked(void *unused) {
  int set = epoll_create1(0);
  struct epoll_event event;
  while (!leave) {
    if (epoll_wait(set, &event, 1, 100) < 0) met = errno;
    turns++;
  }
  return unused;
}

static void helper(int line, int counts) {
  char byte;
  int made = 0;
  while (read(line, &byte, 1) < 0) {
    pid_t child = fork();
    if (!child) {
      if (!fork()) usleep(1000);
      _exit(0);
    }
    CHECK(waitpid(child, 0, 0) == child, "%m");
    made++;
  }
  CHECK(write(counts, &made, sizeof made) == sizeof made, "%m");
  _exit(0);
}

static int orphans(void) {
  int line[2], counts[2], status, made, got = 0;
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  CHECK(!pipe2(line, O_NONBLOCK) && !pipe(counts), "%m");
  pid_t first = fork();
  if (!first) close(line[1]), helper(line[0], counts[1]);
  close(counts[1]);
  say("ready\n");
  char order[64];
  fcntl(0, F_SETFL, O_NONBLOCK);
  for (int open = 1;;) {
    if (open && read(0, order, sizeof order) >= 0) open = close(line[1]) != 0;
    pid_t child = waitpid(-1, &status, WNOHANG);
    if (child == first) break;
    if (child > 0) got++;
    else usleep(200);
  }
  CHECK(read(counts[0], &made, sizeof made) == sizeof made, "%m");
  for (int rest = 0; rest < 100; rest++, usleep(2000))
    while (waitpid(-1, &status, WNOHANG) > 0) got++;
  CHECK(got == made, "of %d orphans %d came", made, got);
  int adopts = 0;
  prctl(PR_GET_CHILD_SUBREAPER, &adopts);
  CHECK(adopts, "it adopts no more");
  return 0;
}

static void check(void) {
  long before = turns;
  while (turns == before && !gate) usleep(1000);
  CHECK(!met, "errno %d", met);
}

int main(int argc, char **argv) {
  CHECK(argc > 1, "usage: family ROLE");
  if (!strcmp(argv[1], "orphans")) return orphans();
  pthread_t threads[32];
  int count = 1;
  void *(*role)(void *) = wall;
  if (!strcmp(argv[1], "vfork")) gate = argv[2], role = part;
  if (!strcmp(argv[1], "blocked")) role = blocked, count = 32;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);
  for (int i = 0; i < count; i++) CHECK(!pthread_create(&threads[i], 0, role, 0), "%m");
  pthread_sigmask(SIG_SETMASK, &before, 0);
  int result = obey(check);
  leave = 1;
  for (int i = 0; i < count; i++) pthread_join(threads[i], 0);
  return result;
}
