// SPDX-License-Identifier: LGPL-2.1-only
// scale PROCESSES THREADS DEPTH: so many children, below each a chain of DEPTH more, all with so many threads that wait in
// the ways programs do. Each knows its ids, those of its threads and its memory; no wait may be interrupted.
#include "subject.h"
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

enum { PAGES = 4 };
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static volatile int over;
static int line[2], ready[2], gate[2];

static void await(void) {
  pthread_mutex_lock(&mutex);
  while (!over) pthread_cond_wait(&changed, &mutex);
  pthread_mutex_unlock(&mutex);
}

static void *wait_somehow(void *kind) {
  pid_t tid = (pid_t)syscall(SYS_gettid);
  char byte;
  struct pollfd ends = {.fd = line[0], .events = POLLIN};
  switch ((long)kind % 4) {
    case 0: await(); break;
    case 1: CHECK(poll(&ends, 1, -1) == 1, "poll: %m"); break;
    case 2: CHECK(poll(&ends, 1, 3600 * 1000) == 1, "poll: %m"); break;
    case 3: CHECK(read(line[0], &byte, 1) == 1, "read: %m");
  }
  CHECK(syscall(SYS_gettid) == tid, "thread %ld was %d", syscall(SYS_gettid), tid);
  return 0;
}

static void live(int number, int threads, int depth) {
  pid_t child = 0;
  while (depth-- > 0 && !child) {
    CHECK((child = fork()) >= 0, "%m");
    if (!child) number += 1000;
  }
  CHECK(!pipe(line), "%m");
  pid_t self = getpid(), parent = getppid();
  unsigned char *memory = malloc(PAGES * 4096);
  fill(memory, PAGES * 4096, (unsigned)number);
  pthread_t *all = calloc((size_t)threads, sizeof *all);
  pthread_attr_t small;
  CHECK(!pthread_attr_init(&small) && !pthread_attr_setstacksize(&small, 1 << 16), "%m");
  for (long i = 1; i < threads; i++)
    CHECK(!pthread_create(&all[i], &small, wait_somehow, (void *)(i + number)), "%m");
  char byte = 'r';
  CHECK(write(ready[1], &byte, 1) == 1, "%m");
  CHECK(read(gate[0], &byte, 1) == 0, "the gate: %m");
  CHECK(getpid() == self && getppid() == parent, "%d of %d was %d of %d", getpid(), getppid(), self, parent);
  CHECK(differs(memory, PAGES * 4096, (unsigned)number) < 0, "the memory of %d", self);
  pthread_mutex_lock(&mutex);
  over = 1;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&mutex);
  // One byte for each reader, and one that nobody takes for the others.
  for (int i = 0; i <= threads; i++) CHECK(write(line[1], &byte, 1) == 1, "%m");
  for (int i = 1; i < threads; i++) pthread_join(all[i], 0);
  int status = 0;
  if (child) CHECK(waitpid(child, &status, 0) == child && status == 0, "%d ended with %x", child, status);
  _exit(0);
}

int main(int argc, char **argv) {
  CHECK(argc == 4, "usage: scale PROCESSES THREADS DEPTH");
  int processes = atoi(argv[1]), threads = atoi(argv[2]), depth = atoi(argv[3]);
  CHECK(!pipe(ready) && !pipe(gate), "%m");
  pid_t *children = calloc((size_t)processes, sizeof *children);
  for (int i = 0; i < processes; i++) {
    CHECK((children[i] = fork()) >= 0, "%m");
    if (children[i]) continue;
    close(gate[1]);
    live(i, threads, depth);
  }
  char byte;
  for (int i = 0; i < processes * (depth + 1); i++) CHECK(read(ready[0], &byte, 1) == 1, "%m");
  puts("ready");
  fflush(stdout);
  char order[16];
  CHECK(fgets(order, sizeof order, stdin) && !strcmp(order, "go\n"), "no order");
  close(gate[1]);
  for (int i = 0; i < processes; i++) {
    int status = 0;
    CHECK(waitpid(children[i], &status, 0) == children[i] && status == 0, "%d ended with %x", children[i], status);
  }
  return 0;
}
