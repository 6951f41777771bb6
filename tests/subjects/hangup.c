// SPDX-License-Identifier: LGPL-2.1-only
// A watch that EPOLLONESHOT has disarmed, of a pipe whose writer then goes away.
#include "subject.h"
#include <sys/epoll.h>

static int ends[2], set;

static void check(void) {
  struct epoll_event found;
  if (ends[1] >= 0) close(ends[1]);
  ends[1] = -1;
  CHECK(epoll_wait(set, &found, 1, 0) == 0, "a watch that has fired reports %x", found.events);
  struct epoll_event watch = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 5};
  CHECK(!epoll_ctl(set, EPOLL_CTL_MOD, ends[0], &watch), "%m");
  CHECK(epoll_wait(set, &found, 1, 0) == 1 && found.data.u64 == 5 && found.events == EPOLLHUP, "%x", found.events);
}

int main(void) {
  struct epoll_event watch = {.events = EPOLLIN | EPOLLONESHOT}, found;
  char byte;
  CHECK(!pipe(ends), "%m");
  set = epoll_create1(0);
  CHECK(!epoll_ctl(set, EPOLL_CTL_ADD, ends[0], &watch), "%m");
  CHECK(write(ends[1], "x", 1) == 1 && epoll_wait(set, &found, 1, 0) == 1 && read(ends[0], &byte, 1) == 1, "%m");
  return obey(check);
}
