// SPDX-License-Identifier: LGPL-2.1-only
// Processes in several groups and sessions that answer each other, whatever their ids: children in the root's group, in
// one of their own, in a session of their own with a child there, an orphan in the group that the root leads. Whoever is left
// without those above ends. With an argument a child in a group of its own is stopped.
#include "subject.h"
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { MOST = 8 };

static int down[MOST], up[MOST], links;

// Answers until nobody asks any more.
static void answer(int in, int out) {
  char what;
  while (read(in, &what, 1) == 1 && write(out, &what, 1) == 1) {}
  _exit(0);
}

enum { GROUP = 1, SESSION = 2, ORPHAN = 4, STOPPED = 8 };

static void begin(int kind) {
  int there[2], back[2];
  char ready;
  CHECK(!pipe(there) && !pipe(back), "%m");
  pid_t pid = fork();
  if (!pid) {
    if (kind & ORPHAN && fork()) _exit(0);
    for (int i = 0; i < links; i++) close(down[i]), close(up[i]);
    close(there[1]), close(back[0]);
    if (kind & GROUP) CHECK(!setpgid(0, 0), "%m");
    if (kind & SESSION) {
      CHECK(setsid() == getpid(), "%m");
      if (!fork()) {
        struct pollfd line = {there[0], 0, 0};
        while (poll(&line, 1, -1) < 0 || !(line.revents & POLLHUP)) {}
        _exit(0);
      }
    }
    CHECK(write(back[1], "r", 1) == 1, "%m");
    if (kind & STOPPED) raise(SIGSTOP);
    answer(there[0], back[1]);
  }
  close(there[0]), close(back[1]);
  CHECK(pid > 0 && read(back[0], &ready, 1) == 1, "%m");
  if (kind & ORPHAN) CHECK(waitpid(pid, 0, 0) == pid, "%m");
  if (kind & STOPPED) {
    int status;
    CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status), "%m");
    return;
  }
  down[links] = there[1], up[links++] = back[0];
}

static void check(void) {
  for (int i = 0; i < links; i++) {
    char what = (char)i, heard = 127;
    CHECK(write(down[i], &what, 1) == 1 && read(up[i], &heard, 1) == 1 && heard == what, "link %d", i);
  }
}

int main(int argc, char **argv) {
  (void)argv;
  signal(SIGPIPE, SIG_IGN);
  begin(0);
  begin(GROUP);
  begin(SESSION);
  begin(ORPHAN);
  begin(0);
  if (argc > 1) begin(GROUP | STOPPED);
  obey(check);
  return 0;
}
