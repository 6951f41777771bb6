// SPDX-License-Identifier: LGPL-2.1-only
// prone THREADS MOST: threads in calls that answer EINTR to any signal, even one that is ignored. Not more often than MOST
// times in all: a process that is traced at this very moment has one as soon as the kernel makes one.
#include "subject.h"
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/sem.h>
#include <time.h>

static _Atomic int interrupted;
static int semaphores;

static void *wait_for_nothing(void *kind) {
  const struct timespec time = {1, 0};
  struct sembuf take = {0, -1, 0};
  struct epoll_event event;
  const int epoll = epoll_create1(0);
  sigset_t none;
  sigemptyset(&none);
  for (;;) {
    int result = 0;
    switch ((uintptr_t)kind % 3) {
    case 0: result = epoll_wait(epoll, &event, 1, 1000); break;
    case 1: result = semtimedop(semaphores, &take, 1, &time); break;
    case 2: result = sigtimedwait(&none, 0, &time); break;
    }
    if (result < 0 && errno == EINTR) interrupted++;
  }
  return 0;
}

int main(int argc, char **argv) {
  CHECK(argc > 2, "THREADS MOST");
  pthread_attr_t small;
  CHECK(!pthread_attr_init(&small) && !pthread_attr_setstacksize(&small, 64 << 10), "%m");
  CHECK((semaphores = semget(IPC_PRIVATE, 1, 0600)) >= 0, "%m");
  for (int i = 0; i < atoi(argv[1]); i++) {
    pthread_t thread;
    CHECK(!pthread_create(&thread, &small, wait_for_nothing, (void *)(uintptr_t)i), "%m");
  }
  say("ready\n");
  char line[16];
  hear(line, sizeof line);
  CHECK(!semctl(semaphores, 0, IPC_RMID), "%m");
  CHECK(interrupted <= atoi(argv[2]), "%d times", interrupted);
  return 0;
}
