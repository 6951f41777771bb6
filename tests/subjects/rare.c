// SPDX-License-Identifier: LGPL-2.1-only
// rare KIND: what few programs have, and what nobody sees missing before it is used.
//   terminal  leads a session whose controlling terminal is its own pseudo-terminal
//   closed    the same, and nobody has that terminal open
//   owner     pipes that children have, too, whose readiness is told to this process, and to a child
//   nodes     nodes that were removed: a symbolic link, a FIFO, a socket and a file that are only named; root's device
//   serial    root's device that is a terminal, with settings of its own
//   console   the same, and it is the controlling terminal
//   watches   watches on a tree of directories of which it has none open
//   quiet     watches on its directory, where it has files open, removed ones, too: nobody else does anything there
//   holder    locks of flock(2) that a child has, too: /proc names this process
#include "subject.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/fanotify.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>

enum { CHILDREN = 4, LINK = 0, FIFO, SOCKET, PLAIN, DEVICE, NODES };
static const char *kind;
static int master = -1, slave = -1, ends[2][2], nodes[NODES], files[4];
static pid_t children[CHILDREN];
static volatile sig_atomic_t hangups;
static struct stat were[NODES];

static int is(const char *word) { return !strcmp(kind, word); }

static void on_hangup(int number) { hangups += number == SIGHUP; }

static void bear(void) {
  for (int i = 0; i < CHILDREN; i++) {
    children[i] = fork();
    CHECK(children[i] >= 0, "%m");
    if (children[i]) continue;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) pause();
  }
}

static void take_terminal(void) {
  char name[64];
  signal(SIGHUP, on_hangup);
  if (master >= 0) close(master);
  hangups = 0;
  master = posix_openpt(O_RDWR | O_NOCTTY);
  CHECK(master >= 0 && !unlockpt(master) && !ptsname_r(master, name, sizeof name), "%m");
  slave = open(name, O_RDWR | O_NOCTTY);
  CHECK(slave >= 0 && !ioctl(slave, TIOCSCTTY, 0), "no controlling terminal: %m");
  if (is("closed")) close(slave);
}

// Whoever closes the master of a session's terminal has its leader told.
static void look_at_terminal(void) {
  char line[8];
  CHECK(getsid(0) == getpid(), "it leads no session");
  int own = open("/dev/tty", O_RDWR | O_NOCTTY);
  CHECK(own >= 0, "no controlling terminal: %m");
  CHECK(tcgetsid(own) == getpid() && tcgetpgrp(own) == getpid(), "%d %d", tcgetsid(own), tcgetpgrp(own));
  CHECK(write(master, "word\n", 5) == 5 && read(own, line, sizeof line) == 5, "%m");
  close(own);
  if (!is("closed")) close(slave);
  close(master);
  master = -1;
  CHECK(hangups == 1, "%d hangups", hangups);
}

static void owned(int fd, pid_t by) {
  struct f_owner_ex owner;
  CHECK(!fcntl(fd, F_GETOWN_EX, &owner) && owner.type == F_OWNER_PID && owner.pid == by, "%d, not %d: %m", owner.pid, by);
}

static const char *names[NODES] = {"a", "b", "c", "d", "e"};

static void make_nodes(void) {
  struct sockaddr_un address = {AF_UNIX, "c"};
  int bound = socket(AF_UNIX, SOCK_STREAM, 0);
  CHECK(!symlink("somewhere/else", names[LINK]) && !mkfifo(names[FIFO], 0640), "%m");
  CHECK(!bind(bound, (struct sockaddr *)&address, sizeof address) && !close(bound), "%m");
  int plain = open(names[PLAIN], O_WRONLY | O_CREAT, 0644);
  CHECK(write(plain, "content", 7) == 7 && !close(plain), "%m");
  for (int i = 0; i < NODES; i++) {
    nodes[i] = -1;
    if (i == DEVICE && mknod(names[i], S_IFCHR | 0604, 0x103)) continue;
    nodes[i] = open(names[i], i == DEVICE ? O_RDWR : O_PATH | O_NOFOLLOW);
    unlink(names[i]);
    if (nodes[i] >= 0) CHECK(!fstat(nodes[i], &were[i]), "%m");
  }
}

static void look_at_nodes(void) {
  char text[64];
  for (int i = 0; i < NODES; i++) {
    struct stat now;
    if (nodes[i] < 0) continue;
    CHECK(!fstat(nodes[i], &now), "%s: %m", names[i]);
    CHECK(now.st_mode == were[i].st_mode && now.st_rdev == were[i].st_rdev && !now.st_nlink, "%s: %o, not %o", names[i], now.st_mode, were[i].st_mode);
    CHECK(!(fcntl(nodes[i], F_GETFL) & O_PATH) == (i == DEVICE), "%s", names[i]);
    CHECK(access(names[i], F_OK), "%s is there", names[i]);
  }
  ssize_t length = readlinkat(nodes[LINK], "", text, sizeof text);
  CHECK(length == 14 && !memcmp(text, "somewhere/else", 14), "%zd: %m", length);
  snprintf(text, sizeof text, "/proc/self/fd/%d", nodes[PLAIN]);
  int plain = open(text, O_RDONLY);
  CHECK(plain >= 0 && read(plain, text, sizeof text) == 7 && !memcmp(text, "content", 7), "%m");
  close(plain);
  if (nodes[DEVICE] >= 0) CHECK(write(nodes[DEVICE], "x", 1) == 1 && !read(nodes[DEVICE], text, 1), "%m");
}

static void settings(struct termios *of) {
  CHECK(!tcgetattr(files[0], of), "%m");
}

static void open_serial(void) {
  struct termios t;
  files[0] = open("/dev/tty63", O_RDWR | O_NONBLOCK | (is("console") ? 0 : O_NOCTTY));
  if (files[0] < 0) {
    say("none\n");
    exit(0);
  }
  settings(&t);
  t.c_cc[VERASE] = '#';
  t.c_lflag &= (tcflag_t) ~(ICANON | ECHO);
  CHECK(!tcsetattr(files[0], TCSANOW, &t), "%m");
}

static void watch(void) {
  files[0] = inotify_init1(IN_NONBLOCK);
  CHECK(!mkdir("tree", 0755) && !mkdir("tree/a", 0755) && !mkdir("tree/a/b", 0755), "%m");
  static const char *all[] = {"tree/a/b", "tree/a", "tree"};
  for (int i = 0; i < 3; i++) CHECK(inotify_add_watch(files[0], all[i], IN_CREATE) == i + 1, "%m");
}

static void look_at_watches(void) {
  char bytes[512];
  struct inotify_event *event = (void *)bytes;
  int made = open("tree/a/b/file", O_CREAT | O_WRONLY, 0644);
  CHECK(made >= 0 && !close(made) && !unlink("tree/a/b/file"), "%m");
  ssize_t got = read(files[0], bytes, sizeof bytes);
  CHECK(got > 0 && event->wd == 1 && !strcmp(event->name, "file"), "%zd %d: %m", got, event->wd);
  CHECK(!mkdir("tree/c", 0755) && !rmdir("tree/c"), "%m");
  got = read(files[0], bytes, sizeof bytes);
  CHECK(got > 0 && event->wd == 3 && !strcmp(event->name, "c"), "%zd %d: %m", got, event->wd);
}

static void be_quiet(void) {
  int file = open("file", O_CREAT | O_RDWR, 0600), gone = open("gone", O_CREAT | O_RDWR, 0600);
  CHECK(file >= 0 && gone >= 0 && !ftruncate(file, 4096) && !unlink("gone") && !mkdir("left", 0700), "%m");
  CHECK(open("left", O_RDONLY | O_DIRECTORY) >= 0 && !rmdir("left"), "%m");
  CHECK(mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) != MAP_FAILED, "%m");
  files[0] = inotify_init1(IN_NONBLOCK);
  CHECK(inotify_add_watch(files[0], ".", IN_ALL_EVENTS) == 1, "%m");
  // Without rights it is only told of files by their handles.
  unsigned flags = FAN_CLASS_NOTIF | FAN_NONBLOCK | (geteuid() ? FAN_REPORT_FID : 0);
  files[1] = fanotify_init(flags, O_RDONLY);
  unsigned long mask = FAN_OPEN | FAN_CLOSE | FAN_MODIFY | FAN_ACCESS | FAN_EVENT_ON_CHILD;
  if (files[1] >= 0) CHECK(!fanotify_mark(files[1], FAN_MARK_ADD, mask, AT_FDCWD, "."), "%m");
}

// Whether there are notices of files; they are taken, and what was opened for them is closed.
static int notices(int group, char *bytes, size_t room) {
  int all = 0;
  ssize_t left;
  while ((left = read(group, bytes, room)) > 0)
    for (struct fanotify_event_metadata *event = (void *)bytes; FAN_EVENT_OK(event, left);
         event = FAN_EVENT_NEXT(event, left)) {
      if (event->fd >= 0) close(event->fd);
      all |= (int)event->mask;
    }
  return all;
}

static void look_for_quiet(void) {
  char bytes[4096];
  struct inotify_event *event = (void *)bytes;
  ssize_t got = read(files[0], bytes, sizeof bytes);
  CHECK(got < 0 && errno == EAGAIN, "%x %s", event->mask, event->len ? event->name : "");
  int seen = files[1] < 0 ? 0 : notices(files[1], bytes, sizeof bytes);
  CHECK(!seen, "%x", seen);
  CHECK(!close(open("file", O_RDONLY)) && read(files[0], bytes, sizeof bytes) > 0, "%m");
  CHECK(files[1] < 0 || notices(files[1], bytes, sizeof bytes), "%m");
  while (read(files[0], bytes, sizeof bytes) > 0) continue;
}

// The third is held by whoever has it, since who has taken it is gone.
static void held_at(pid_t at, int fd, const char *how, pid_t by) {
  char name[64], line[256], wanted[64];
  snprintf(name, sizeof name, "/proc/%d/fdinfo/%d", at, fd);
  snprintf(wanted, sizeof wanted, "FLOCK  ADVISORY  %s %d ", how, by);
  FILE *info;
  // A child may give up the rights of its restart a moment later than its parent.
  while (!(info = fopen(name, "r")) && at != getpid()) usleep(1000);
  int found = 0;
  CHECK(info, "%s: %m", name);
  while (fgets(line, sizeof line, info)) found += strstr(line, wanted) != 0;
  fclose(info);
  CHECK(found == 1, "no %s", wanted);
}

static void held(int fd, const char *how, pid_t by) { held_at(getpid(), fd, how, by); }

static void check(void) {
  if (is("terminal") || is("closed")) {
    look_at_terminal();
    take_terminal();
  }
  if (is("owner")) {
    owned(ends[0][0], getpid());
    owned(ends[1][0], children[0]);
  }
  if (is("nodes")) look_at_nodes();
  if (is("watches")) look_at_watches();
  if (is("quiet")) look_for_quiet();
  if (is("serial") || is("console")) {
    struct termios t;
    struct stat now;
    CHECK(!fstat(files[0], &now) && now.st_rdev == 0x43f, "%lx", (long)now.st_rdev);
    settings(&t);
    CHECK(t.c_cc[VERASE] == '#' && !(t.c_lflag & (ICANON | ECHO)), "%d %o", t.c_cc[VERASE], t.c_lflag);
  }
  if (is("holder")) {
    held(files[0], "WRITE", getpid());
    held(files[1], "READ", getpid());
    held(files[2], "WRITE", getpid());
    held_at(children[0], files[3], "WRITE", children[0]);
    CHECK(flock(open("0", O_RDONLY), LOCK_SH | LOCK_NB) && errno == EWOULDBLOCK, "%m");
    CHECK(flock(open("1", O_RDONLY), LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK, "%m");
  }
}

int main(int count, char **arguments) {
  kind = count > 1 ? arguments[1] : "";
  if (is("terminal") || is("closed")) take_terminal();
  if (is("nodes")) make_nodes();
  if (is("watches")) watch();
  if (is("quiet")) be_quiet();
  if (is("serial") || is("console")) open_serial();
  if (is("owner")) CHECK(!pipe(ends[0]) && !pipe(ends[1]), "%m");
  if (is("holder")) {
    files[0] = open("0", O_RDWR | O_CREAT, 0644), files[1] = open("1", O_RDWR | O_CREAT, 0644);
    files[2] = open("2", O_RDWR | O_CREAT, 0644);
    if (!fork()) _exit(flock(files[2], LOCK_EX));
    wait(0);
    files[3] = open("3", O_RDWR | O_CREAT, 0644);
    CHECK(!flock(files[0], LOCK_EX) && !flock(files[1], LOCK_SH) && !flock(files[3], LOCK_EX), "%m");
  }
  if (is("owner") || is("holder")) bear();
  // Another description of the file is not the one that has the lock.
  if (is("holder")) CHECK(!close(files[3]) && open("3", O_RDONLY) == files[3], "%m");
  if (is("owner")) CHECK(!fcntl(ends[0][0], F_SETOWN, getpid()) && !fcntl(ends[1][0], F_SETOWN, children[0]), "%m");
  int status = obey(check);
  for (int i = 0; i < CHILDREN && children[i]; i++) kill(children[i], SIGKILL);
  return status;
}
