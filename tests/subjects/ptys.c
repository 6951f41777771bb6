// SPDX-License-Identifier: LGPL-2.1-only
// ptys: pseudo-terminals in every state, with what is under way in them in both directions: whole and half lines, ends of
// file, every byte, output that nobody has read, packet mode, a closed, a locked and a hung up slave, output that waits; and,
// unless it is told "alone", a session with a controlling terminal and a foreground group, which reads from it.
#include "subject.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <termios.h>

enum { LINES, BYTES, PACKETS, CLOSED, LOCKED, HUNG, WAITS, ALL };
static struct { int master, slave; } pty[ALL];
static int session[2], talk[2], answer[2];
static const char *lines = "one\ntwo\4three\4\4par";
static unsigned char typed[2000], shown[2000], seen[4001];

static void raw(int fd, int least) {
  struct termios t;
  CHECK(!tcgetattr(fd, &t), "%m");
  cfmakeraw(&t);
  t.c_cc[VMIN] = least;
  CHECK(!tcsetattr(fd, TCSANOW, &t), "%m");
}

static int open_master(void) {
  int master = posix_openpt(O_RDWR | O_NOCTTY);
  CHECK(master >= 0 && !unlockpt(master), "%m");
  return master;
}

static int open_slave(int master) {
  char name[64];
  CHECK(!ptsname_r(master, name, sizeof name), "%m");
  return open(name, O_RDWR | O_NOCTTY);
}

static void put(int fd, const void *bytes, size_t length) {
  ssize_t done = write(fd, bytes, length);
  CHECK(done == (ssize_t)length, "%zd of %zu: %m", done, length);
}

static void is(int fd, const void *bytes, size_t length) {
  ssize_t got = read(fd, seen, sizeof seen), more = got;
  // What two have written comes in two pieces.
  for (; got > 0 && (size_t)got < length && more > 0; got += more) more = read(fd, seen + got, sizeof seen - (size_t)got);
  CHECK(got == (ssize_t)length && !memcmp(seen, bytes, length), "%zd in place of %zu bytes: %.*s (%m)", got, length, got > 0 ? (int)got : 0, seen);
}

static int polled(int fd, int events) {
  struct pollfd p = {fd, (short)events, 0};
  CHECK(poll(&p, 1, 0) >= 0, "%m");
  return p.revents;
}

static void arm(void) {
  put(pty[LINES].master, lines, strlen(lines));
  put(pty[BYTES].master, typed, sizeof typed);
  for (size_t at = 0; at < sizeof shown; at += 500) put(pty[BYTES].slave, shown + at, 500);
  put(pty[PACKETS].master, "a line\n", 7);
  put(pty[PACKETS].slave, "a packet", 8);
  int slave = open_slave(pty[CLOSED].master);
  put(slave, "last words", 10);
  CHECK(!close(slave), "%m");
  put(pty[WAITS].master, "\23", 1);
}

static void look_at_bytes(void) {
  size_t done = 0;
  while (done < sizeof typed) {
    ssize_t got = read(pty[BYTES].slave, seen, sizeof seen);
    CHECK(got > 0 && !memcmp(seen, typed + done, (size_t)got), "%zd at %zu: %m", got, done);
    done += (size_t)got;
  }
  CHECK(!(polled(pty[BYTES].slave, POLLIN) & POLLIN), "more than was typed");
  for (done = 0; done < sizeof shown;) {
    ssize_t got = read(pty[BYTES].master, seen, sizeof seen);
    CHECK(got > 0 && !memcmp(seen, shown + done, (size_t)got), "%zd at %zu: %m", got, done);
    done += (size_t)got;
  }
}

static void look(void) {
  struct termios t;
  struct winsize w;
  int word;
  is(pty[LINES].slave, "one\n", 4);
  is(pty[LINES].slave, "two", 3);
  is(pty[LINES].slave, "three", 5);
  is(pty[LINES].slave, "", 0);
  put(pty[LINES].master, "\177tial\n", 6);
  is(pty[LINES].slave, "patial\n", 7);
  look_at_bytes();
  CHECK(!(polled(pty[LINES].master, POLLIN) & POLLIN), "something was echoed");
  CHECK(!ioctl(pty[PACKETS].master, 0x80045438 /* TIOCGPKT */, &word) && word == 1, "no packet mode: %m");
  is(pty[PACKETS].master, "\0a packet", 9);
  is(pty[PACKETS].slave, "a line\n", 7);
  is(pty[CLOSED].master, "last words", 10);
  CHECK(read(pty[CLOSED].master, seen, 1) == -1 && errno == EIO, "the slave is not closed: %m");
  CHECK(!polled(pty[LOCKED].master, POLLIN), "%#x", polled(pty[LOCKED].master, POLLIN));
  CHECK(open_slave(pty[LOCKED].master) == -1 && errno == EIO, "it is not locked: %m");
  CHECK(tcgetattr(pty[HUNG].slave, &t) == -1 && errno == EIO, "it is not hung up: %m");
  CHECK(read(pty[HUNG].slave, seen, 1) == 0, "it does not end: %m");
  CHECK(polled(pty[WAITS].slave, POLLOUT) == 0, "writers do not wait");
  put(pty[WAITS].master, "\21", 1);
  CHECK(polled(pty[WAITS].slave, POLLOUT) == POLLOUT, "writers wait for ever");
  CHECK(!tcgetattr(pty[WAITS].slave, &t), "%m");
  CHECK(t.c_cc[VERASE] == '#' && t.c_oflag == (OPOST | OCRNL) && cfgetospeed(&t) == B9600, "%d %o", t.c_cc[VERASE], t.c_oflag);
  CHECK(!ioctl(pty[WAITS].master, TIOCGWINSZ, &w) && w.ws_row == 33 && w.ws_col == 99 && w.ws_xpixel == 7, "%d %d", w.ws_row, w.ws_col);
  CHECK(!ioctl(pty[WAITS].slave, 0x80045440 /* TIOCGEXCL */, &word) && word == 1, "not exclusive: %m");
  if (!talk[1]) return;
  put(talk[1], "?", 1);
  is(answer[0], "!", 1);
}

static void check(void) {
  look();
  arm();
}

// The leader of a session: everything of its terminal is asked there.
static void lead(int master, pid_t reader) {
  char c;
  int by_name = open("/dev/tty", O_RDWR);
  while (read(talk[0], &c, 1) == 1) {
    CHECK(isatty(by_name) && tcgetsid(by_name) == getpid(), "its session: %d (%m)", tcgetsid(by_name));
    CHECK(tcgetpgrp(session[1]) == reader && getpgid(reader) == reader, "its foreground: %d, not %d", tcgetpgrp(session[1]), reader);
    int again = open("/dev/tty", O_RDWR | O_NOCTTY);
    CHECK(again >= 0 && tcgetsid(again) == getpid(), "no controlling terminal: %m");
    close(again);
    put(master, "to the reader\n", 14);
    is(master, "to the reader\r\ngot to the reader\r\n", 34);
    put(answer[1], "!", 1);
  }
  _exit(0);
}

static void read_lines(void) {
  char line[64];
  for (;;) {
    ssize_t got = read(session[1], line, sizeof line);
    if (got <= 0) _exit(1);
    dprintf(session[1], "got %.*s", (int)got, line);
  }
}

static void begin_session(void) {
  CHECK(!pipe(talk) && !pipe(answer), "%m");
  session[0] = open_master();
  session[1] = open_slave(session[0]);
  pid_t leader = fork();
  CHECK(leader >= 0, "%m");
  if (leader) return;
  close(talk[1]);
  CHECK(setsid() == getpid() && !ioctl(session[1], TIOCSCTTY, 0), "%m");
  signal(SIGTTOU, SIG_IGN);
  pid_t reader = fork();
  if (!reader) {
    close(talk[0]);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setpgid(0, 0);
    while (tcgetpgrp(session[1]) != getpid()) usleep(1000);
    read_lines();
  }
  setpgid(reader, reader);
  CHECK(!tcsetpgrp(session[1], reader), "%m");
  lead(session[0], reader);
}

int main(int argc, char **argv) {
  struct termios t;
  int word = 1;
  fill(shown, sizeof shown, 1);
  for (size_t i = 0; i < sizeof typed; i++) typed[i] = (unsigned char)i;
  for (int i = 0; i < ALL; i++) {
    pty[i].master = open_master();
    pty[i].slave = i == CLOSED || i == LOCKED ? -1 : open_slave(pty[i].master);
  }
  CHECK(!tcgetattr(pty[LINES].slave, &t), "%m");
  t.c_lflag &= (tcflag_t)~(ECHO | ECHOCTL);
  CHECK(!tcsetattr(pty[LINES].slave, TCSANOW, &t), "%m");
  raw(pty[BYTES].slave, 3);
  CHECK(!tcsetattr(pty[PACKETS].slave, TCSANOW, &t) && !ioctl(pty[PACKETS].master, TIOCPKT, &word), "%m");
  CHECK(!ioctl(pty[LOCKED].master, TIOCSPTLCK, &word), "%m");
  CHECK(!close(pty[HUNG].master), "%m");
  t.c_cc[VERASE] = '#';
  t.c_oflag = OPOST | OCRNL;
  cfsetspeed(&t, B9600);
  struct winsize w = {33, 99, 7, 8};
  CHECK(!tcsetattr(pty[WAITS].slave, TCSANOW, &t) && !ioctl(pty[WAITS].slave, TIOCSWINSZ, &w), "%m");
  CHECK(!ioctl(pty[WAITS].slave, TIOCEXCL), "%m");
  if (argc < 2 || strcmp(argv[1], "alone")) begin_session();
  arm();
  return obey(check);
}
