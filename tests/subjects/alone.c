// SPDX-License-Identifier: LGPL-2.1-only
// alone KIND: looks without a pause for whatever is not its own: children, descriptors, signals.
//   handled, ignored, signalfd   what becomes of SIGCHLD
//   reaper                       it adopts orphans
//   processes, files, sizes, signals, space, data, locked, stack
//                                it has hardly any of these (setrlimit(2))
#include "subject.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

static const char *kind;
static volatile sig_atomic_t got;
static int notices = -1, files;

static int is(const char *word) { return !strcmp(kind, word); }
static void handler(int number) { got = number; }

static int opened(void) {
  int count = 0;
  for (int fd = 0; fd < 256; fd++) count += fcntl(fd, F_GETFD) >= 0;
  return count;
}

static void check(void) {
  int status;
  CHECK(wait4(-1, &status, WNOHANG | __WALL, 0) == -1 && errno == ECHILD, "a child: %m");
  siginfo_t info;
  int any = WEXITED | WSTOPPED | WCONTINUED | WNOHANG | WNOWAIT | __WALL;
  CHECK(waitid(P_ALL, 0, &info, any) == -1 && errno == ECHILD, "a child: %m");
  CHECK(opened() == files, "%d descriptors", opened());
  CHECK(!got, "signal %d", got);
  sigset_t waits;
  CHECK(!sigpending(&waits), "%m");
  for (int number = 1; number < 65; number++)
    CHECK(number == SIGTSTP || sigismember(&waits, number) != 1, "signal %d waits", number);
  struct signalfd_siginfo one;
  CHECK(notices < 0 || read(notices, &one, sizeof one) == -1, "SIGCHLD");
}

static void limit(const char *word, int what, rlim_t value) {
  struct rlimit now;
  CHECK(!getrlimit(what, &now), "%m");
  if (is(word)) CHECK(!setrlimit(what, &(struct rlimit){value, value}), "%s: %m", word);
  // "soft WORD": the hard limit stays.
  if (!strncmp(kind, "soft ", 5) && !strcmp(kind + 5, word))
    CHECK(!setrlimit(what, &(struct rlimit){value, now.rlim_max}), "%s: %m", word);
}

int main(int count, char **arguments) {
  kind = count > 1 ? arguments[1] : "";
  for (int number = 1; number < 32; number++)
    if (number != SIGTSTP && number != SIGCHLD && number != SIGKILL && number != SIGSTOP)
      CHECK(signal(number, handler) != SIG_ERR, "%m");
  if (is("handled")) signal(SIGCHLD, handler);
  if (is("ignored")) signal(SIGCHLD, SIG_IGN);
  if (is("signalfd")) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    CHECK(!sigprocmask(SIG_BLOCK, &set, 0) && (notices = signalfd(-1, &set, SFD_NONBLOCK)) >= 0, "%m");
  }
  if (is("reaper")) CHECK(!prctl(PR_SET_CHILD_SUBREAPER, 1), "%m");
  limit("processes", RLIMIT_NPROC, 1);
  limit("files", RLIMIT_NOFILE, 3);
  limit("sizes", RLIMIT_FSIZE, 0);
  limit("signals", RLIMIT_SIGPENDING, 0);
  limit("space", RLIMIT_AS, 1 << 20);
  limit("data", RLIMIT_DATA, 1 << 20);
  limit("locked", RLIMIT_MEMLOCK, 0);
  limit("stack", RLIMIT_STACK, 1 << 16);
  files = opened();
  say("ready\n");
  struct pollfd input = {0, POLLIN, 0};
  for (char line[64];;) {
    while (poll(&input, 1, 0) != 1) check();
    hear(line, sizeof line);
    check();
    if (!strcmp(line, "go")) return 0;
    say("ok\n");
  }
}
