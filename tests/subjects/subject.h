// SPDX-License-Identifier: LGPL-2.1-only
// What every subject shares: it says "ready", then obeys lines on its standard input:
//   check  looks at its own state, arms it anew and answers "ok"
//   go     checks and exits with 0
// A failed check says which one on standard error and exits with a status of its own (10 to 109).
#ifndef SUBJECT_H
#define SUBJECT_H
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(holds, ...)                                                      \
  do {                                                                         \
    if (!(holds)) {                                                            \
      fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #holds);              \
      fprintf(stderr, __VA_ARGS__);                                            \
      fprintf(stderr, "\n");                                                   \
      _exit(10 + __COUNTER__ % 100);                                           \
    }                                                                          \
  } while (0)

static inline void say(const char *line) {
  size_t length = strlen(line);
  CHECK(write(1, line, length) == (ssize_t)length, "standard output: %m");
}

// Where the machine has no such thing there is nothing to check: it says "none".
#define NONE(holds)                                                            \
  do {                                                                         \
    if (!(holds)) {                                                            \
      say("none\n");                                                           \
      exit(0);                                                                 \
    }                                                                          \
  } while (0)

// One line of standard input, read byte by byte so that nothing waits unseen in a buffer.
static inline void hear(char *line, size_t room) {
  size_t n = 0;
  for (;;) {
    ssize_t got = read(0, line + n, 1);
    CHECK(got >= 0, "standard input: %m");
    CHECK(got == 1, "standard input ended");
    if (line[n] == '\n') break;
    if (n + 2 < room) n++;
  }
  line[n] = 0;
}

// Whether a thread of this process sleeps (state S in /proc); one that has ended does not.
static inline int asleep(pid_t thread) {
  char name[64], text[256];
  snprintf(name, sizeof name, "/proc/self/task/%d/stat", thread);
  FILE *file = fopen(name, "r");
  const char *state = file && fgets(text, sizeof text, file) ? strrchr(text, ')') : 0;
  if (file) fclose(file);
  return state && state[2] == 'S';
}

static inline int obey(void (*check)(void)) {
  char line[64];
  say("ready\n");
  for (;;) {
    hear(line, sizeof line);
    check();
    if (!strcmp(line, "go")) return 0;
    say("ok\n");
  }
}

// A byte that depends on the place and on the generation, never 0.
static inline unsigned char pattern(size_t at, unsigned generation) {
  return (unsigned char)((at * 2654435761u >> 7) ^ (at >> 12) ^ generation) | 1;
}

static inline void fill(unsigned char *p, size_t length, unsigned generation) {
  for (size_t i = 0; i < length; i++) p[i] = pattern(i, generation);
}

// The first byte that is not the pattern's, or -1.
static inline long differs(const unsigned char *p, size_t length, unsigned generation) {
  for (size_t i = 0; i < length; i++)
    if (p[i] != pattern(i, generation)) return (long)i;
  return -1;
}

static inline long not_zero(const unsigned char *p, size_t length) {
  for (size_t i = 0; i < length; i++)
    if (p[i]) return (long)i;
  return -1;
}
#endif
