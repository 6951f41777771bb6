// SPDX-License-Identifier: LGPL-2.1-only
// vfork GATE: one thread is in vfork(2) until something writes to the FIFO named GATE; another one works on.
#include "subject.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>

static const char *gate;
static volatile unsigned long turns;
static volatile int leave, status = -1;

// Only system calls: the child shares memory and stack with its parent.
static void *part(void *unused) {
  pid_t child = vfork();
  if (child == 0) {
    char byte;
    int fd = open(gate, O_RDONLY);
    _exit(fd >= 0 && read(fd, &byte, 1) == 1 ? 23 : 24);
  }
  CHECK(child > 0, "%m");
  int result;
  // A restart is without the child, also when that has ended and nobody has waited for it: the stop comes right after vfork.
  if (waitpid(child, &result, 0) == child) status = result;
  else CHECK(errno == ECHILD, "%m");
  return unused;
}

static void *work(void *unused) {
  while (!leave) turns++, sched_yield();
  return unused;
}

static void check(void) {
  unsigned long before = turns;
  while (turns == before) sched_yield();
}

int main(int argc, char **argv) {
  pthread_t threads[2];
  CHECK(argc == 2, "usage: vfork GATE");
  gate = argv[1];
  CHECK(!pthread_create(&threads[0], 0, part, 0) && !pthread_create(&threads[1], 0, work, 0), "%m");
  int result = obey(check);
  leave = 1;
  for (int i = 0; i < 2; i++) pthread_join(threads[i], 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 23, "the child ended with %x", status);
  return result;
}
