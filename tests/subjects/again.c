// SPDX-License-Identifier: LGPL-2.1-only
// again: after "go" it executes itself by /proc/self/exe, with a word, by which it says "again" and ends.
#include "subject.h"

static void check(void) {}

int main(int argc, char **argv) {
  if (argc == 2) {
    say("again\n");
    return 0;
  }
  obey(check);
  execl("/proc/self/exe", argv[0], "word", (char *)0);
  CHECK(0, "execl: %m");
}
