// SPDX-License-Identifier: LGPL-2.1-only
// execs N: a thread that is not the main one executes the program again with N - 1, while others sleep; at 0 it ends by
// exit(3). The end must come however often somebody looks.
#include "subject.h"
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

enum { OTHERS = 6 };
static char **arguments;

static void *sleep_on(void *unused) {
  for (;;) nanosleep(&(struct timespec){0, 1000000}, 0);
  return unused;
}

static void *execute(void *unused) {
  nanosleep(&(struct timespec){0, 4000000}, 0);
  int left = atoi(arguments[1]);
  if (!left) exit(0);
  char number[16];
  snprintf(number, sizeof number, "%d", left - 1);
  execl("/proc/self/exe", arguments[0], number, (char *)0);
  CHECK(0, "execl: %m");
  return unused;
}

int main(int argc, char **argv) {
  CHECK(argc == 2, "usage: execs N");
  arguments = argv;
  pthread_t thread;
  for (int i = 0; i < OTHERS; i++) CHECK(!pthread_create(&thread, 0, sleep_on, 0), "%m");
  CHECK(!pthread_create(&thread, 0, execute, 0), "%m");
  sleep_on(0);
}
