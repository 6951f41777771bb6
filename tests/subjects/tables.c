// SPDX-License-Identifier: LGPL-2.1-only
// tables: processes that have a descriptor table (CLONE_FILES), or a working directory and umask (CLONE_FS), or both
// together: what one opens, closes or changes the others see. And one that has neither. And brothers that have both
// with each other, and not with their parent, and an orphan that has them, too.
#include "subject.h"
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { FILES, FS, BOTH, NEITHER, ALL, PARENT = ALL, BROTHER, OTHER, ORPHAN, EVERYBODY };
static const unsigned long flags[ALL] = {CLONE_FILES, CLONE_FS, CLONE_FILES | CLONE_FS, 0};
static int ask[EVERYBODY][2], answer[EVERYBODY][2], round_;
static char home[150];

// What a child does: opens a file under a number, goes to a directory, sets its umask; and says what it finds there.
struct order { int opens, number; char directory[200]; int mask; };
struct found { int number; char directory[200]; int mask; };

static void look(struct found *found, int number) {
  memset(found, 0, sizeof *found);
  char line[64];
  ssize_t got = pread(number, line, sizeof line - 1, 0);
  found->number = got < 0 ? -1 : (line[got] = 0, atoi(line));
  CHECK(getcwd(found->directory, sizeof found->directory), "%m");
  found->mask = (int)umask(0);
  umask((mode_t)found->mask);
}

static void serve(int i) {
  struct order order;
  struct found found;
  while (read(ask[i][0], &order, sizeof order) == sizeof order) {
    if (order.opens) {
      int fd = open(home, O_TMPFILE | O_RDWR, 0600);
      char line[16];
      snprintf(line, sizeof line, "%d", order.opens);
      CHECK(fd >= 0 && write(fd, line, strlen(line)) > 0 && dup2(fd, order.number) == order.number, "%m");
      close(fd);
      CHECK(!chdir(order.directory), "%m");
      umask((mode_t)order.mask);
    }
    look(&found, order.number);
    CHECK(write(answer[i][1], &found, sizeof found) == sizeof found, "%m");
  }
  _exit(0);
}

static void tell(int i, const struct order *order, struct found *found) {
  CHECK(write(ask[i][1], order, sizeof *order) == sizeof *order, "%m");
  CHECK(read(answer[i][0], found, sizeof *found) == sizeof *found, "child %d: %m", i);
}

static pid_t made(unsigned long how) {
  pid_t child = (pid_t)syscall(SYS_clone, how | SIGCHLD, 0, 0, 0, 0);
  CHECK(child >= 0, "%m");
  return child;
}

// Brothers, of whom one makes the other and an orphan; their parent, which has shared with all, does so no more.
static void beget(void) {
  const unsigned long both = CLONE_FILES | CLONE_FS;
  if (made(0)) return;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  pid_t parent = getpid();
  if (!made(both)) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (!made(both | CLONE_PARENT)) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      serve(OTHER);
    }
    if (!made(both)) {
      if (!made(both)) {
        while (getppid() != parent) usleep(1000);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        serve(ORPHAN);
      }
      _exit(0);
    }
    CHECK(wait(0) > 0, "%m");
    serve(BROTHER);
  }
  struct order order = {0};
  struct found found;
  // When all of them are there.
  for (int i = BROTHER; i < EVERYBODY; i++) {
    CHECK(write(ask[i][1], &order, sizeof order) == sizeof order, "%m");
    CHECK(read(answer[i][0], &found, sizeof found) == sizeof found, "%m");
  }
  CHECK(!unshare(CLONE_FILES | CLONE_FS), "%m");
  serve(PARENT);
}

static void check_brothers(void) {
  static int last = -1;
  struct order asks = {.number = 71};
  struct found one, found;
  for (int opens = last < 0; opens < 2; opens++) {
    if (opens) {
      asks = (struct order){.opens = ++round_, .number = 71, .mask = 1 + round_ % 62};
      snprintf(asks.directory, sizeof asks.directory, "%s/%d", home, round_ % ALL);
      last = round_;
    }
    tell(BROTHER + round_ % 3, &asks, &one);
    asks.opens = 0;
    CHECK(one.number == last, "%d in place of %d", one.number, last);
    for (int i = PARENT; i < EVERYBODY; i++) {
      tell(i, &asks, &found);
      CHECK((i != PARENT) == (found.number == last && found.mask == one.mask && !strcmp(found.directory, one.directory)), "%d: %d %o %s", i, found.number, found.mask, found.directory);
    }
  }
}

static void check(void) {
  static int last[2];
  struct order asks = {0};
  struct found found, own;
  // What was before a checkpoint is there still, for all who share it.
  for (int i = 0; i < ALL && round_; i++) {
    asks.number = 70;
    tell(i, &asks, &found);
    look(&own, 70);
    CHECK(own.number == last[0] && own.mask == last[1], "%d %o", own.number, own.mask);
    int files = flags[i] & CLONE_FILES, fs = flags[i] & CLONE_FS;
    CHECK(files ? found.number == last[0] : found.number != last[0], "child %d: file %d", i, found.number);
    CHECK(fs ? found.mask == last[1] && !strcmp(found.directory, own.directory) : found.mask != last[1], "child %d: %s %o", i, found.directory, found.mask);
  }
  // And what one changes all see.
  for (int i = 0; i < ALL; i++) {
    asks = (struct order){.opens = ++round_, .number = 70, .mask = 1 + round_ % 62};
    snprintf(asks.directory, sizeof asks.directory, "%s/%d", home, i);
    tell(i, &asks, &found);
    look(&own, 70);
    CHECK(!(flags[i] & CLONE_FILES) || own.number == round_, "file %d", own.number);
    CHECK(!(flags[i] & CLONE_FS) || (own.mask == asks.mask && !strcmp(own.directory, asks.directory)), "%s %o", own.directory, own.mask);
    if (flags[i] & CLONE_FILES) last[0] = round_;
    if (flags[i] & CLONE_FS) last[1] = asks.mask;
  }
  check_brothers();
}

int main(void) {
  CHECK(getcwd(home, sizeof home), "%m");
  for (int i = 0; i < ALL; i++) {
    char name[200];
    snprintf(name, sizeof name, "%s/%d", home, i);
    CHECK(!mkdir(name, 0755) || errno == EEXIST, "%m");
  }
  for (int i = 0; i < EVERYBODY; i++) CHECK(!pipe(ask[i]) && !pipe(answer[i]), "%m");
  beget();
  for (int i = 0; i < ALL; i++) {
    if (made(flags[i])) continue;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    serve(i);
  }
  // It has asked its children until then, whose answers it would take from us.
  tell(PARENT, &(struct order){0}, &(struct found){0});
  check();
  return obey(check);
}
