// SPDX-License-Identifier: LGPL-2.1-only
// Pipes with their flags, packets and descriptions; FIFOs; watches of epoll that are no longer what their
// numbers say; who is told of input; the position in a directory; files of /proc.
#include "subject.h"
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

static int packets[2], ends[2], second, fifo, stale, stale_pipe[2], moved, fired, fired_pipe[2], told[2], statm, tasks;
static DIR *directory;
static int listed;

static int event(int epoll, struct epoll_event *event) { return epoll_wait(epoll, event, 1, 0); }

static void check(void) {
  char text[64];
  struct epoll_event found;
  CHECK(fcntl(packets[1], F_GETFL) & O_DIRECT, "a packet pipe is a stream now");
  CHECK(read(packets[0], text, 64) == 3 && !memcmp(text, "one", 3), "the first packet");
  CHECK(read(packets[0], text, 64) == 4 && !memcmp(text, "four", 4), "the second packet");
  CHECK(read(packets[0], text, 64) < 0 && errno == EAGAIN, "a third packet: %m");
  CHECK(write(packets[1], "one", 3) == 3 && write(packets[1], "four", 4) == 4, "%m");

  CHECK(!(fcntl(ends[1], F_GETFL) & O_NONBLOCK) && fcntl(second, F_GETFL) & O_NONBLOCK, "two descriptions are one");
  CHECK(write(second, "x", 1) == 1 && read(ends[0], text, 64) == 2 && !memcmp(text, "kx", 2), "the pipe's content");
  CHECK(write(ends[1], "k", 1) == 1, "%m");
  CHECK(read(fifo, text, 64) == 5 && !memcmp(text, "named", 5), "the FIFO's content");
  CHECK(write(fifo, "named", 5) == 5, "%m");

  // A watch whose number was closed, while a duplicate lives on.
  CHECK(event(stale, &found) == 0, "an early event");
  CHECK(write(stale_pipe[1], "s", 1) == 1, "%m");
  CHECK(event(stale, &found) == 1 && found.data.u64 == 77, "the watch of a closed number is lost");
  CHECK(read(moved, text, 1) == 1, "%m");
  CHECK(fcntl(stale_pipe[0], F_GETFL) >= 0 && read(stale_pipe[0], text, 8) == 8, "the number's own file: %m");
  CHECK(write(stale_pipe[0], text, 8) == 8, "%m");

  // Disarmed by EPOLLONESHOT: not even a hang-up is told.
  CHECK(event(fired, &found) == 0, "an event of a watch that has fired: %x", found.events);
  CHECK(write(fired_pipe[1], "f", 1) == 1 && event(fired, &found) == 0, "an event of a watch that has fired");
  CHECK(read(fired_pipe[0], text, 64) == 1, "bytes that nobody wrote");

  CHECK(fcntl(told[0], F_GETOWN) == getpid(), "the owner is %d", fcntl(told[0], F_GETOWN));
  CHECK(fcntl(told[0], F_GETSIG) == SIGUSR2 && fcntl(told[0], F_GETFL) & O_ASYNC, "signal %d", fcntl(told[0], F_GETSIG));

  CHECK(pread(statm, text, 63, 0) > 0, "/proc/self/statm: %m");
  char name[32];
  snprintf(name, sizeof name, "%d", getpid());
  CHECK(!faccessat(tasks, name, F_OK, 0), "/proc/self/task is another's");

  long here = telldir(directory);
  int rest = 0;
  while (readdir(directory)) rest++;
  CHECK(listed + rest == 302, "%d entries and %d", listed, rest);
  seekdir(directory, here);
}

int main(void) {
  struct epoll_event watch = {.events = EPOLLIN, .data.u64 = 77}, found;
  signal(SIGUSR2, SIG_IGN);
  CHECK(!pipe2(packets, O_DIRECT | O_NONBLOCK), "%m");
  CHECK(write(packets[1], "one", 3) == 3 && write(packets[1], "four", 4) == 4, "%m");
  CHECK(!pipe(ends), "%m");
  char name[64];
  snprintf(name, sizeof name, "/proc/self/fd/%d", ends[1]);
  second = open(name, O_WRONLY | O_NONBLOCK);
  CHECK(second >= 0 && write(ends[1], "k", 1) == 1, "%m");
  unlink("a fifo");
  CHECK(!mkfifo("a fifo", 0600), "%m");
  fifo = open("a fifo", O_RDWR);
  CHECK(fifo >= 0 && write(fifo, "named", 5) == 5, "%m");

  CHECK(!pipe(stale_pipe), "%m");
  stale = epoll_create1(0);
  CHECK(!epoll_ctl(stale, EPOLL_CTL_ADD, stale_pipe[0], &watch), "%m");
  moved = fcntl(stale_pipe[0], F_DUPFD, 60);
  int counter = eventfd(1, 0);
  dup2(counter, stale_pipe[0]);
  close(counter);

  CHECK(!pipe(fired_pipe), "%m");
  fired = epoll_create1(0);
  watch.events = EPOLLIN | EPOLLONESHOT;
  CHECK(!epoll_ctl(fired, EPOLL_CTL_ADD, fired_pipe[0], &watch), "%m");
  CHECK(write(fired_pipe[1], "f", 1) == 1 && epoll_wait(fired, &found, 1, 0) == 1 && read(fired_pipe[0], name, 1) == 1, "%m");

  CHECK(!pipe(told), "%m");
  CHECK(!fcntl(told[0], F_SETOWN, getpid()) && !fcntl(told[0], F_SETSIG, SIGUSR2), "%m");
  CHECK(!fcntl(told[0], F_SETFL, O_ASYNC), "%m");

  statm = open("/proc/self/statm", O_RDONLY);
  snprintf(name, sizeof name, "/proc/%d/task", getpid());
  tasks = open(name, O_RDONLY | O_DIRECTORY);
  mkdir("entries", 0777);
  for (int i = 0; i < 300; i++) {
    snprintf(name, sizeof name, "entries/a rather long name of a file, number %d", i);
    close(open(name, O_CREAT | O_WRONLY, 0666));
  }
  directory = opendir("entries");
  for (listed = 0; listed < 100; listed++) CHECK(readdir(directory), "%m");
  return obey(check);
}
