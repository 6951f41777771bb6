// SPDX-License-Identifier: LGPL-2.1-only
// Many descriptors under a low limit: "many N M" opens N of them and puts one at M.
#include "subject.h"
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

static int count, high, fds[4096];

static void check(void) {
  uint64_t value;
  for (int i = 0; i < count; i++) {
    CHECK(read(fds[i], &value, 8) == 8 && value == (uint64_t)i + 1, "descriptor %d has %ld", fds[i], (long)value);
    CHECK(write(fds[i], &value, 8) == 8, "%m");
  }
  CHECK(!count || (read(high, &value, 8) == 8 && value == 1 && write(high, &value, 8) == 8), "descriptor %d", high);
  CHECK(fcntl(high, F_GETFD) == FD_CLOEXEC, "%d does not close on exec", high);
}

int main(int argc, char **argv) {
  CHECK(argc == 3, "%d arguments", argc);
  count = atoi(argv[1]), high = atoi(argv[2]);
  for (int i = 0; i < count; i++) {
    fds[i] = eventfd((unsigned)i + 1, 0);
    CHECK(fds[i] >= 0, "%m");
  }
  // From the top down, so that no number is where it was made.
  for (int i = 0; i + 1 < count; i += 2) {
    int spare = dup(fds[i]);
    dup2(fds[i + 1], fds[i]), dup2(spare, fds[i + 1]), close(spare);
    int number = fds[i];
    fds[i] = fds[i + 1], fds[i + 1] = number;
  }
  CHECK(dup3(fds[0], high, O_CLOEXEC) == high, "%m");
  return obey(check);
}
