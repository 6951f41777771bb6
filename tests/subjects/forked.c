// SPDX-License-Identifier: LGPL-2.1-only
// Forks a child that execs nothing, says both process ids, and waits for the child: "child PID", then "ended STATUS".
// The child goes on when the file GATE exists.
#include "subject.h"
#include <fcntl.h>
#include <sys/wait.h>

int main(int argc, char **argv) {
  CHECK(argc == 2, "usage: forked GATE");
  pid_t child = fork();
  if (!child) {
    // Waits for the file GATE to appear; everything it needs is in its memory.
    while (access(argv[1], F_OK)) usleep(2000);
    say("child goes on\n");
    _exit(33);
  }
  char line[64];
  sprintf(line, "child %d\n", child);
  say(line);
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child, "%m");
  sprintf(line, "ended %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status));
  say(line);
  return 0;
}
