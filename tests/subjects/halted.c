// SPDX-License-Identifier: LGPL-2.1-only
// A parent with two children that were stopped, one by SIGSTOP, the other by SIGTSTP, and of which it was told; one has
// threads that would count in shared memory if they ran. Nobody may go on before the parent says so, and the parent
// hears nothing of them until then.
#include "subject.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { CHILDREN = 2, THREADS = 8 };
static const int BY[CHILDREN] = {SIGSTOP, SIGTSTP};

static volatile long *counts;
static volatile int told;
static long known[CHILDREN];
static pid_t child[CHILDREN];
static int gate[CHILDREN][2];

static void count(int signal) { told += signal == SIGCHLD; }

static void *spin(void *counter) {
  for (;;) { ++*(volatile long *)counter; usleep(50); }
  return counter;
}

static void live(int number) {
  pthread_t thread;
  char byte;
  for (int i = 0; number == 0 && i < THREADS; i++) CHECK(!pthread_create(&thread, 0, spin, (void *)&counts[0]), "%m");
  close(gate[number][1]);
  counts[number]++;
  ssize_t got = read(gate[number][0], &byte, 1);
  CHECK(got == 1, "%zd: %m", got);
  counts[number]++;
  _exit(4 + number);
}

static void look(void) {
  CHECK(told == 0, "%d signals about children", told);
  for (int i = 0; i < CHILDREN; i++) {
    siginfo_t info = {0};
    int waited = waitid(P_PID, child[i], &info, WSTOPPED | WEXITED | WCONTINUED | WNOHANG | WNOWAIT);
    CHECK(waited == 0 && info.si_pid == 0, "%d, child %d tells %d: %m", waited, i, info.si_code);
    CHECK(counts[i] == known[i], "child %d has run: %ld, was %ld", i, counts[i], known[i]);
    // Who is of the same user may look at it while it stands still.
    char name[64];
    snprintf(name, sizeof name, "/proc/%d/maps", child[i]);
    int maps = open(name, O_RDONLY);
    CHECK(maps >= 0 && !close(maps), "child %d: %m", i);
  }
}

int main(void) {
  counts = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(counts != MAP_FAILED, "%m");
  for (int i = 0; i < CHILDREN; i++) {
    int status;
    CHECK(!pipe(gate[i]), "%m");
    child[i] = fork();
    if (!child[i]) live(i);
    while (!counts[i]) usleep(1000);
    CHECK(!kill(child[i], BY[i]), "%m");
    CHECK(waitpid(child[i], &status, WUNTRACED) == child[i] && WIFSTOPPED(status), "%m");
    // It waits, and is nothing to who is stopped.
    CHECK(!kill(child[i], SIGSTOP), "%m");
    known[i] = counts[i];
  }
  struct sigaction action = {.sa_handler = count, .sa_flags = SA_RESTART};
  CHECK(!sigaction(SIGCHLD, &action, 0), "%m");
  obey(look);
  signal(SIGCHLD, SIG_DFL);
  for (int i = 0; i < CHILDREN; i++) {
    int status;
    CHECK(write(gate[i][1], "x", 1) == 1 && !kill(child[i], SIGCONT), "%m");
    CHECK(waitpid(child[i], &status, 0) == child[i], "%m");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 4 + i, "child %d: %x", i, status);
    CHECK(counts[i] > known[i], "child %d", i);
  }
  return 0;
}
