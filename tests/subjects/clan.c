// SPDX-License-Identifier: LGPL-2.1-only
// A tree of twenty processes that notice what happens to them: four chains, each process of which has its child answer
// before it answers itself; a child that has stopped and one that has ended, of which the root has been told once.
// Calls that wait must not be interrupted, nobody gets SIGCHLD without a cause, and parents, groups and sessions stay.
// With an argument no child is stopped.
#include "subject.h"
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

enum { CHAINS = 4, PAGES = 16 };
static const int LENGTHS[CHAINS] = {5, 5, 4, 3};

struct link { int down, up; pid_t pid; };

static volatile int told;
static unsigned char *memory;
static pid_t self, parent, group, session;
static unsigned generation;
static volatile long turns;

static void count(int signal) { told += signal == SIGCHLD; }

// A busy thread, so that threads run when they are stopped.
static void *spin(void *unused) {
  for (;;) { turns++; usleep(100); }
  return unused;
}

static void begin(void) {
  self = getpid(), parent = getppid(), group = getpgrp(), session = getsid(0), generation = (unsigned)self, told = 0;
  if (!memory) CHECK((memory = malloc(PAGES * 4096)) != 0, "%m");
  fill(memory, PAGES * 4096, generation);
}

static void look(void) {
  CHECK(getpid() == self, "%d was %d", getpid(), self);
  // The root's parent, group and session are others after a restart.
  if (parent) {
    CHECK(getppid() == parent, "the parent of %d is %d, was %d", self, getppid(), parent);
    CHECK(group != self || getpgrp() == group, "the group of %d", self);
    CHECK(session != self || getsid(0) == session, "the session of %d", self);
  }
  CHECK(told == 0, "%d signals about children of %d", told, self);
  CHECK(differs(memory, PAGES * 4096, generation) < 0, "the memory of %d", self);
  fill(memory, PAGES * 4096, ++generation);
}

static char ask(struct link *link, char what) {
  char answer = 0;
  CHECK(write(link->down, &what, 1) == 1, "%m");
  ssize_t got = read(link->up, &answer, 1);
  CHECK(got == 1, "%zd from %d: %m", got, link->pid);
  return answer;
}

static void bury(struct link *link, int expected) {
  int status = 0;
  pid_t got = waitpid(link->pid, &status, 0);
  CHECK(got == link->pid, "%d for %d: %m", got, link->pid);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == expected, "%d ended with %x", link->pid, status);
}

static struct link chain(int length, int kind);

static void live(int in, int out, int length, int kind) {
  begin();
  if (kind == 1) setpgid(0, 0), group = getpgrp();
  if (kind == 2) {
    CHECK(setsid() == self, "%m");
    group = session = self;
  }
  pthread_t thread;
  if (kind == 3) CHECK(!pthread_create(&thread, 0, spin, 0), "%m");
  struct link next = {0};
  if (length > 1) next = chain(length - 1, kind == 2 ? 0 : kind);
  char what = 'r';
  CHECK(write(out, &what, 1) == 1, "%m");
  for (;;) {
    if (kind == 0) {
      struct pollfd line = {in, POLLIN, 0};
      CHECK(poll(&line, 1, -1) == 1, "poll of %d: %m", self);
    }
    ssize_t got = read(in, &what, 1);
    if (got == 0) _exit(0);
    CHECK(got == 1, "read of %d: %zd %m", self, got);
    if (what == 'g') told = 0;
    look();
    if (length > 1) CHECK(ask(&next, what) == what, "an answer");
    if (what == 'g') {
      if (length > 1) bury(&next, 3);
      CHECK(write(out, &what, 1) == 1, "%m");
      _exit(3);
    }
    CHECK(write(out, &what, 1) == 1, "%m");
  }
}

static struct link chain(int length, int kind) {
  int down[2], up[2];
  char ready;
  CHECK(!pipe(down) && !pipe(up), "%m");
  pid_t pid = fork();
  if (!pid) {
    close(down[1]), close(up[0]);
    live(down[0], up[1], length, kind);
  }
  close(down[0]), close(up[1]);
  CHECK(pid > 0 && read(up[0], &ready, 1) == 1, "%m");
  return (struct link){down[1], up[0], pid};
}

static struct link chains[CHAINS];
static pid_t stopped, dead;

static void check(void) {
  look();
  for (int i = 0; i < CHAINS; i++) CHECK(ask(&chains[i], 'c') == 'c', "an answer");
  siginfo_t info = {0};
  if (!stopped) return;
  CHECK(!waitid(P_PID, stopped, &info, WSTOPPED | WEXITED | WNOHANG | WNOWAIT), "%m");
  CHECK(info.si_pid == 0, "the stopped child tells %d", info.si_code);
}

int main(int argc, char **argv) {
  (void)argv;
  int status;
  siginfo_t info = {0};
  if (argc == 1) {
    stopped = fork();
    if (!stopped) { raise(SIGSTOP); _exit(4); }
    CHECK(waitpid(stopped, &status, WUNTRACED) == stopped && WIFSTOPPED(status), "%m");
  }
  dead = fork();
  if (!dead) _exit(5);
  CHECK(!waitid(P_PID, dead, &info, WEXITED | WNOWAIT), "%m");
  begin();
  parent = 0;
  for (int i = 0; i < CHAINS; i++) chains[i] = chain(LENGTHS[i], i);
  struct sigaction action = {.sa_handler = count};
  sigaction(SIGCHLD, &action, 0);
  obey(check);
  signal(SIGCHLD, SIG_DFL);
  for (int i = 0; i < CHAINS; i++) {
    CHECK(ask(&chains[i], 'g') == 'g', "an answer");
    bury(&chains[i], 3);
  }
  bury(&(struct link){0, 0, dead}, 5);
  if (!stopped) return 0;
  kill(stopped, SIGCONT);
  bury(&(struct link){0, 0, stopped}, 4);
  return 0;
}
