// SPDX-License-Identifier: LGPL-2.1-only
// stopper: gives back what it is given, as cat does; at SIGTSTP it stops itself by SIGSTOP, as programs do that have a terminal to
// tidy up first (pv, top).
#include "subject.h"
#include <signal.h>

static void stop(int signal) {
  (void)signal;
  raise(SIGSTOP);
}

int main(void) {
  struct sigaction action = {.sa_handler = stop, .sa_flags = SA_RESTART};
  CHECK(!sigaction(SIGTSTP, &action, 0), "%m");
  char letter;
  while (read(0, &letter, 1) == 1) CHECK(write(1, &letter, 1) == 1, "%m");
  return 0;
}
