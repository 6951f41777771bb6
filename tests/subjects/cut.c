// SPDX-License-Identifier: LGPL-2.1-only
// cut KIND: a thread is in the middle of a blocking call, having moved a part. Nobody sends it a signal, so the call must
// give all that it was asked for when "go" lets it go on.
#include "subject.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <termios.h>

enum { MUCH = 1 << 20, PARTS = 5, MESSAGES = 40, LENGTH = 4000, LEAST = 60, FIRST = 23 };

static const char *kind;
static int from, to;  // what comes out of the one was written to the other
static unsigned char *source, *target;
static volatile pid_t caller;
static volatile int go;
static volatile long result = -1, failure;
static struct iovec parts[PARTS];
static struct mmsghdr messages[MESSAGES];

static int is(const char *name) { return !strcmp(kind, name); }

// These do not wait, but look at signals on their way.
static int busy(void) { return is("zero") || is("getrandom") || is("fallocate"); }

static void split(unsigned char *bytes) {
  size_t at = 0;
  for (int i = 0; i < PARTS; i++) {
    size_t length = i == PARTS - 1 ? MUCH - at : MUCH / 7 + 1001 * (size_t)i;
    parts[i] = (struct iovec){bytes + at, length};
    at += length;
  }
}

static void datagrams(unsigned char *bytes) {
  for (int i = 0; i < MESSAGES; i++) {
    static struct iovec each[MESSAGES];
    each[i] = (struct iovec){bytes + LENGTH * i, LENGTH};
    messages[i].msg_hdr = (struct msghdr){.msg_iov = each + i, .msg_iovlen = 1};
  }
}

static long make_call(void) {
  struct msghdr message = {.msg_iov = parts, .msg_iovlen = PARTS};
  if (is("write") || is("write_socket") || is("write_terminal")) return write(to, source, MUCH);
  if (is("writev") || is("writev_socket")) return writev(to, parts, PARTS);
  if (is("send")) return send(to, source, MUCH, 0);
  if (is("sendmsg")) return sendmsg(to, &message, 0);
  if (is("sendmmsg")) return sendmmsg(to, messages, MESSAGES, 0);
  if (is("sendfile")) return sendfile(to, open("file", O_RDONLY), 0, MUCH);
  if (is("recv")) return recv(from, target, MUCH, MSG_WAITALL);
  if (is("recvmsg")) return recvmsg(from, &message, MSG_WAITALL);
  if (is("recvmmsg")) return recvmmsg(from, messages, MESSAGES, 0, 0);
  if (is("read_terminal")) return read(from, target, LEAST);
  CHECK(0, "no kind %s", kind);
  return -1;
}

static void *work(void *nothing) {
  caller = gettid();
  if (busy()) {
    while (!go && !failure) {
      if (is("fallocate")) {
        // Memory of a file is made and given back; what was made is undone by a signal.
        failure = fallocate(from, 0, 0, 32 * MUCH) || ftruncate(from, 0) ? errno : 0;
        continue;
      }
      long got = is("zero") ? read(from, target, MUCH) : getrandom(target, MUCH, 0);
      if (got != MUCH) failure = got;
    }
    result = MUCH;
    return nothing;
  }
  result = make_call();
  if (result < 0) failure = errno;
  return nothing;
}

static void prepare(void) {
  source = malloc(MUCH), target = malloc(MUCH);
  fill(source, MUCH, 1);
  int ends[2];
  if (busy()) {
    from = is("fallocate") ? memfd_create("", 0) : open("/dev/zero", O_RDONLY);
  } else if (is("write") || is("writev")) {
    CHECK(!pipe(ends), "%m");
    from = ends[0], to = ends[1];
  } else if (is("write_terminal") || is("read_terminal")) {
    from = posix_openpt(O_RDWR | O_NOCTTY);
    CHECK(from >= 0 && !grantpt(from) && !unlockpt(from), "%m");
    to = open(ptsname(from), O_RDWR | O_NOCTTY);
    struct termios settings;
    CHECK(!tcgetattr(to, &settings), "%m");
    cfmakeraw(&settings);
    settings.c_cc[VMIN] = LEAST, settings.c_cc[VTIME] = 0;
    CHECK(!tcsetattr(to, TCSANOW, &settings), "%m");
    if (is("read_terminal")) {
      int other = from;
      from = to, to = other;
    }
  } else {
    int type = is("sendmmsg") || is("recvmmsg") ? SOCK_DGRAM : SOCK_STREAM;
    CHECK(!socketpair(AF_UNIX, type, 0, ends), "%m");
    from = ends[0], to = ends[1];
  }
  split(is("recvmsg") ? target : source);
  datagrams(is("recvmmsg") ? target : source);
  if (is("sendfile")) {
    int file = open("file", O_CREAT | O_RDWR, 0600);
    CHECK(write(file, source, MUCH) == MUCH && !close(file), "%m");
  }
  // A part is there already.
  if (is("recv") || is("recvmsg")) CHECK(write(to, source, 70001) == 70001, "%m");
  if (is("read_terminal")) CHECK(write(to, source, FIRST) == FIRST, "%m");
  if (is("recvmmsg"))
    for (int i = 0; i < 3; i++) CHECK(send(to, source + LENGTH * i, LENGTH, 0) == LENGTH, "%m");
}

static int asks(void) { return is("recv") || is("recvmsg") || is("recvmmsg") || is("read_terminal"); }

static long whole(void) {
  if (is("sendmmsg") || is("recvmmsg")) return MESSAGES;
  return is("read_terminal") ? LEAST : MUCH;
}

static size_t bytes(void) {
  if (is("sendmmsg") || is("recvmmsg")) return LENGTH * MESSAGES;
  return is("read_terminal") ? LEAST : MUCH;
}

static void *supply(void *nothing) {
  size_t at = is("recvmmsg") ? 3 * LENGTH : is("read_terminal") ? FIRST : 70001;
  while (at < bytes()) {
    long given = is("recvmmsg") ? send(to, source + at, LENGTH, 0) : write(to, source + at, bytes() - at);
    CHECK(given > 0, "%m");
    at += (size_t)given;
  }
  return nothing;
}

static void *drain(void *nothing) {
  for (size_t at = 0; at < bytes();) {
    long got = read(from, target + at, bytes() - at);
    CHECK(got > 0, "%m");
    at += (size_t)got;
  }
  return nothing;
}

static void check(void) {
  CHECK(failure == 0, "%s ended with %ld", kind, failure);
  CHECK(busy() || result == -1, "%s gave %ld", kind, result);
}

int main(int argc, char **argv) {
  CHECK(argc == 2, "usage: cut KIND");
  kind = argv[1];
  prepare();
  pthread_t worker, other;
  CHECK(!pthread_create(&worker, 0, work, 0), "thread");
  if (!busy())
    while (!caller || !asleep(caller)) usleep(1000);
  obey(check);
  go = 1;
  int moves = !busy();
  if (moves) CHECK(!pthread_create(&other, 0, asks() ? supply : drain, 0), "thread");
  CHECK(!pthread_join(worker, 0), "thread");
  CHECK(result == (moves ? whole() : MUCH) && !failure, "%s gave %ld of %ld, %ld", kind, result, whole(), failure);
  if (!moves) return 0;
  CHECK(!pthread_join(other, 0), "thread");
  long bad = differs(target, bytes(), 1);
  CHECK(bad < 0, "byte %ld differs", bad);
  return 0;
}
