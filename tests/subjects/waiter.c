// SPDX-License-Identifier: LGPL-2.1-only
// waiter: a program with an interval timer, signals and children of its own, which counts all of them.
#include "subject.h"
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>

static volatile int alarms, ended;
static int born, met, alarms_before;

static void on_alarm(int number) { (void)number, alarms++; }
static void on_child(int number) { (void)number, ended++; }

static void check(void) {
  sigset_t child, before;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  sigprocmask(SIG_BLOCK, &child, &before);
  for (int i = 0; i < 5; i++, born++) {
    pid_t pid = fork();
    CHECK(pid >= 0, "fork: %m");
    if (!pid) _exit(40 + i);
    int status = 0;
    pid_t got;
    while ((got = wait4(-1, &status, __WALL, 0)) < 0 && errno == EINTR) {}
    CHECK(got == pid, "waited for %d and met %d: %m", pid, got);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 40 + i, "status %x", status);
    met++;
    sigset_t none = before;
    sigdelset(&none, SIGCHLD);
    while (ended < met) sigsuspend(&none);
  }
  sigprocmask(SIG_SETMASK, &before, 0);
  CHECK(ended == met && met == born, "%d children, %d SIGCHLD, %d waited for", born, ended, met);
  CHECK(wait4(-1, 0, WNOHANG | __WALL, 0) == -1 && errno == ECHILD, "a child too many");
  struct itimerval left;
  CHECK(!getitimer(ITIMER_REAL, &left), "%m");
  CHECK(left.it_interval.tv_usec == 3000 && left.it_interval.tv_sec == 0, "the period of the timer is another");
  // It must go on to fire by itself: if it does not, this never ends.
  alarms_before = alarms;
  while (alarms < alarms_before + 5) pause();
}

int main(void) {
  signal(SIGALRM, on_alarm);
  signal(SIGCHLD, on_child);
  struct itimerval often = {{0, 3000}, {0, 3000}};
  CHECK(!setitimer(ITIMER_REAL, &often, 0), "%m");
  say("ready\n");
  for (char line[64];;) {
    // Reading takes turns with alarms.
    size_t n = 0;
    while (!n || line[n - 1] != '\n') {
      ssize_t got = read(0, line + n, 1);
      CHECK(got == 1 || (got < 0 && errno == EINTR), "standard input: %m");
      if (got == 1) n++;
    }
    check();
    if (!strncmp(line, "go", 2)) return 0;
    say("ok\n");
  }
}
