// SPDX-License-Identifier: LGPL-2.1-only
// runs [MILLISECONDS]: one thread runs children all the time, each by vfork(2) and for so long (20); another one works on.
#include "subject.h"
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>

static struct timespec life = {0, 20000000};
static volatile unsigned long turns, children;
static volatile int leave;

// Only system calls: the child shares memory and stack with its parent.
static void *run(void *unused) {
  while (!leave) {
    pid_t child = vfork();
    if (child == 0) {
      nanosleep(&life, 0);
      _exit(23);
    }
    CHECK(child > 0, "%m");
    int result;
    // A restart is without the child.
    if (waitpid(child, &result, 0) == child) CHECK(WIFEXITED(result) && WEXITSTATUS(result) == 23, "%x", result);
    else CHECK(errno == ECHILD, "%m");
    children++;
  }
  return unused;
}

static void *work(void *unused) {
  while (!leave) turns++, sched_yield();
  return unused;
}

static void check(void) {
  unsigned long before = turns, ran = children;
  while (turns == before || children < ran + 2) sched_yield();
}

int main(int argc, char **argv) {
  pthread_t threads[2];
  if (argc > 1) life.tv_nsec = atol(argv[1]) * 1000000;
  CHECK(!pthread_create(&threads[0], 0, run, 0) && !pthread_create(&threads[1], 0, work, 0), "%m");
  int result = obey(check);
  leave = 1;
  for (int i = 0; i < 2; i++) pthread_join(threads[i], 0);
  return result;
}
