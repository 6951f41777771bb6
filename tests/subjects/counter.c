// SPDX-License-Identifier: LGPL-2.1-only
// counter FILE: writes the integers from 1 on, a line each, and looks now and then whether standard input says
// "check" or "go"; then it proves that its file holds what it has counted.
#include "subject.h"
#include <fcntl.h>
#include <poll.h>

static int file;
static unsigned long count, bytes;
static uint64_t chain = 1, chains[4096];

static uint64_t next(uint64_t x) { return (x ^ x >> 29) * 0xbf58476d1ce4e5b9u + 0x9e3779b97f4a7c15u; }

static void check(void) {
  char *text = malloc(bytes + 1);
  CHECK(lseek(file, 0, SEEK_CUR) == (off_t)bytes, "the offset is not %lu", bytes);
  // The file may be longer: another generation goes on from the same state and writes the same.
  CHECK(pread(file, text, bytes, 0) == (ssize_t)bytes, "the file has less than %lu bytes", bytes);
  text[bytes] = 0;
  char *at = text;
  for (unsigned long i = 1; i <= count; i++) CHECK(strtoul(at, &at, 10) == i, "line %lu", i);
  free(text);
  uint64_t x = 1;
  for (unsigned long i = 1; i <= count; i++) x = next(x);
  CHECK(x == chain && chains[count % 4096] == x, "the computation went wrong");
}

int main(int argc, char **argv) {
  CHECK(argc == 2, "usage: counter FILE");
  file = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0644);
  CHECK(file >= 0, "%s: %m", argv[1]);
  say("ready\n");
  for (;;) {
    char line[64];
    int length = sprintf(line, "%lu\n", ++count);
    CHECK(write(file, line, length) == length, "%m");
    bytes += length;
    chain = chains[count % 4096] = next(chain);
    struct pollfd input = {.fd = 0, .events = POLLIN};
    if (count % 64 == 0 && poll(&input, 1, 1) > 0) {
      hear(line, sizeof line);
      check();
      if (!strcmp(line, "go")) return 0;
      say("ok\n");
    }
  }
}
