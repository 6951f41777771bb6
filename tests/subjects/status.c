// SPDX-License-Identifier: LGPL-2.1-only
// status exit N | status signal N: ends so. status print: its arguments and environment, a line each.
#include "subject.h"
#include <signal.h>

extern char **environ;

int main(int argc, char **argv) {
  if (argc > 2 && !strcmp(argv[1], "exit")) return atoi(argv[2]);
  if (argc > 2 && !strcmp(argv[1], "signal")) return raise(atoi(argv[2])), 3;
  for (int i = 0; i < argc; i++) printf("argument %s\n", argv[i]);
  for (char **e = environ; *e; e++) printf("variable %s\n", *e);
  printf("pid %d\n", getpid());
  return 0;
}
