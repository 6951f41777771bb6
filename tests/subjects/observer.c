// SPDX-License-Identifier: LGPL-2.1-only
// A program that looks for traces of ckpt: children, signals, threads, descriptors.
#include "subject.h"
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

static volatile int children_ended;
static int descriptors;

static void on_child(int number) {
  (void)number;
  children_ended++;
}

static int entries(const char *name) {
  DIR *d = opendir(name);
  CHECK(d, "%s: %m", name);
  int n = 0;
  for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
  closedir(d);
  return n;
}

static void check(void) {
  CHECK(waitpid(-1, 0, WNOHANG) == -1 && errno == ECHILD, "waitpid found a child");
  CHECK(wait4(-1, 0, WNOHANG | __WALL, 0) == -1 && errno == ECHILD, "wait4 with __WALL found a child");
  CHECK(wait4(-1, 0, WNOHANG | __WCLONE, 0) == -1 && errno == ECHILD, "wait4 with __WCLONE found a child");
  CHECK(children_ended == 0, "%d SIGCHLD came", children_ended);
  CHECK(entries("/proc/self/task") == 1, "%d threads", entries("/proc/self/task"));
  CHECK(entries("/proc/self/fd") == descriptors + 1, "%d descriptors", entries("/proc/self/fd") - 1);
  CHECK(dup(0) == 3 && !close(3), "descriptor 3 is taken");
  char text[256], name[64];
  snprintf(name, sizeof name, "/proc/self/task/%d/children", getpid());
  int fd = open(name, O_RDONLY);
  if (fd >= 0) {      // needs CONFIG_PROC_CHILDREN
    ssize_t n = read(fd, text, sizeof text - 1);
    text[n > 0 ? n : 0] = 0;
    CHECK(n == 0, "children: %s", text);
    close(fd);
  }
}

int main(void) {
  signal(SIGCHLD, on_child);
  descriptors = 3;
  check();
  return obey(check);
}
