// SPDX-License-Identifier: LGPL-2.1-only
// edges KIND: has something that few descriptors or threads have, and looks whether it still does. Says "none" instead of
// "ready" where the kernel has no such thing.
#include "subject.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>

#define SLICE 5000000
// struct epoll_params: 50 microseconds, 8 packets, preferred.
#define POLLS 0x1000800000032

static const char *kind;
static int fd = -1, other = -1;
static char group[128];
static pid_t dead;

static int is(const char *word) { return !strcmp(kind, word); }

// struct sched_attr (sched_setattr(2)).
static struct attr {
  unsigned size, policy;
  unsigned long flags;
  int nice;
  unsigned priority;
  unsigned long runtime, deadline, period;
} attr;

static int answers(int one) {
  struct pollfd polled = {one, POLLIN, 0};
  CHECK(poll(&polled, 1, 0) >= 0, "%m");
  return polled.revents;
}

static void line_of(int one, const char *key, char *line, size_t room) {
  char name[64];
  snprintf(name, sizeof name, "/proc/self/fdinfo/%d", one);
  FILE *file = fopen(name, "r");
  CHECK(file, "%m");
  while (fgets(line, room, file) && strncmp(line, key, strlen(key))) continue;
  fclose(file);
}

// The child answers whether it has no ring where its parent has one.
static void fork_with_ring(void) {
  unsigned long ring = 0;
  int there[2], back[2];
  NONE(!syscall(SYS_io_setup, 4, &ring));
  CHECK(!pipe(there) && !pipe(back), "%m");
  fd = there[1], other = back[0];
  if (fork()) return;
  close(fd);
  for (char byte; read(there[0], &byte, 1) == 1 && byte == '?';) {
    int none = syscall(SYS_io_getevents, ring, 0, 0, 0, 0) < 0;
    CHECK(write(back[1], none ? "!" : "r", 1) == 1, "%m");
  }
  _exit(0);
}

static void check(void) {
  char byte, line[128];
  if (is("fifo")) {
    // Nobody has written since it was opened: at its end, and yet not hung up.
    CHECK(read(fd, &byte, 1) == 0, "%m");
    CHECK(!answers(fd), "%x", answers(fd));
    CHECK(fcntl(other, F_GETFL) == (0100000 & fcntl(other, F_GETFL)), "%x", fcntl(other, F_GETFL));
    CHECK(!answers(other), "%x", answers(other));
  }
  if (is("removed")) {
    struct stat found;
    CHECK(!fstat(fd, &found) && !found.st_nlink && (found.st_mode & 0777) == 0640, "%o", found.st_mode);
    CHECK(access("fifo", F_OK) && write(other, "x", 1) == 1 && read(fd, line, sizeof line) == 2, "%m");
    CHECK(write(other, "y", 1) == 1, "%m");
  }
  if (is("thread")) CHECK(fcntl(fd, F_GETFL) & O_EXCL, "%x", fcntl(fd, F_GETFL));
  if (is("cancel")) {
    line_of(fd, "settime flags", line, sizeof line);
    CHECK(strstr(line, "03"), "%s", line);
    struct itimerspec left;
    CHECK(!timerfd_gettime(fd, &left) && left.it_value.tv_sec > 3000 && left.it_value.tv_sec <= 3600,
          "%ld", left.it_value.tv_sec);
  }
  if (is("marks")) {
    line_of(fd, "fanotify flags", line, sizeof line);
    CHECK(!strcmp(line, group), "%s, was %s", line, group);
  }
  if (is("marks") || is("point")) {
    char events[4096], made[64];
    CHECK(read(fd, events, sizeof events) < 0 && errno == EAGAIN, "%m");
    snprintf(made, sizeof made, "%s/ckpt-test-%d", is("point") ? "/dev/shm" : "marked", getpid());
    CHECK(!mkdir(made, 0700) && !rmdir(made), "%m");
    CHECK(read(fd, events, sizeof events) > 0, "%m");
    while (read(fd, events, sizeof events) > 0) continue;
  }
  if (is("nofollow")) CHECK(fcntl(fd, F_GETFL) & O_NOFOLLOW, "%x", fcntl(fd, F_GETFL));
  if (is("polls")) {
    unsigned long params = 0;
    CHECK(!ioctl(fd, 0x80088a02, &params) && params == POLLS, "%lx", params);
  }
  if (is("ring")) {
    CHECK(write(fd, "?", 1) == 1 && read(other, &byte, 1) == 1, "%m");
    CHECK(byte == '!', "a fork has a ring");
  }
  if (is("slice")) {
    CHECK(!syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0), "%m");
    CHECK(attr.runtime == SLICE, "%lu", attr.runtime);
  }
  if (is("dead")) {
    siginfo_t info = {0};
    CHECK(!waitid(P_PID, dead, &info, WEXITED | WNOHANG | WNOWAIT), "%m");
    CHECK(info.si_pid == dead && info.si_code == CLD_EXITED && info.si_status == 3, "%d %d", info.si_code,
          info.si_status);
  }
}

static void set(void) {
  if (is("fifo")) {
    CHECK(!mkfifo("fifo", 0600), "%m");
    fd = open("fifo", O_RDONLY | O_NONBLOCK);
    other = open("fifo", O_RDONLY | O_NONBLOCK);
    CHECK(fd >= 0 && other >= 0 && !fcntl(other, F_SETFL, 0), "%m");
  }
  if (is("removed")) {
    CHECK(!mkfifo("fifo", 0600) && !chmod("fifo", 0640), "%m");
    fd = open("fifo", O_RDONLY | O_NONBLOCK);
    other = open("fifo", O_WRONLY);
    CHECK(write(other, "y", 1) == 1 && !unlink("fifo"), "%m");
  }
  // PIDFD_THREAD
  if (is("thread")) NONE((fd = syscall(SYS_pidfd_open, getpid(), O_EXCL)) >= 0);
  if (is("cancel")) {
    struct itimerspec at = {{0, 0}, {time(0) + 3600, 0}};
    fd = timerfd_create(CLOCK_REALTIME, 0);
    CHECK(!timerfd_settime(fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &at, 0), "%m");
  }
  if (is("nofollow")) CHECK((fd = open("file", O_RDWR | O_CREAT | O_NOFOLLOW, 0600)) >= 0, "%m");
  if (is("polls")) {
    unsigned long params = POLLS;
    NONE((fd = epoll_create1(0)) >= 0 && !ioctl(fd, 0x40088a01, &params));
  }
  if (is("ring")) fork_with_ring();
  if (is("slice")) {
    attr = (struct attr){.size = sizeof attr, .runtime = SLICE};
    CHECK(!syscall(SYS_sched_setattr, 0, &attr, 0), "%m");
    CHECK(!syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0), "%m");
    NONE(attr.runtime == SLICE);
  }
  if (is("marks")) {
    fd = fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK | FAN_REPORT_FID, O_RDONLY);
    CHECK(!mkdir("marked", 0700), "%m");
    NONE(fd >= 0 && !fanotify_mark(fd, FAN_MARK_ADD, FAN_CREATE | FAN_ONDIR, AT_FDCWD, "marked"));
    line_of(fd, "fanotify flags", group, sizeof group);
  }
  if (is("asks")) {
    fd = fanotify_init(FAN_CLASS_CONTENT | FAN_NONBLOCK, O_RDONLY);
    NONE(fd >= 0 && !mkdir("asked", 0700));
    NONE(!fanotify_mark(fd, FAN_MARK_ADD, FAN_OPEN_PERM | FAN_EVENT_ON_CHILD, AT_FDCWD, "asked"));
  }
  // Far from all that it has open or was told: a mount point.
  if (is("point")) {
    fd = inotify_init1(IN_NONBLOCK);
    NONE(inotify_add_watch(fd, "/dev/shm", IN_CREATE) > 0 && !access("/dev/shm", W_OK));
  }
  if (is("dead")) {
    dead = fork();
    if (!dead) _exit(3);
    siginfo_t info;
    CHECK(!waitid(P_PID, dead, &info, WEXITED | WNOWAIT), "%m");
  }
}

int main(int count, char **arguments) {
  kind = count > 1 ? arguments[1] : "";
  set();
  check();
  return obey(check);
}
