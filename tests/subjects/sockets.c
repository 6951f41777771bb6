// SPDX-License-Identifier: LGPL-2.1-only
// Unix sockets between this process and a child of its own, in every state, with something under way in each.
// sockets DIRECTORY: its files lie there.
#include "subject.h"
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>

#define BIG 150000

static int child_line[2], half[2], dead[2], reset[2], self[2], packets[2], datagrams[2], early[2];
static int listener, client, accepted, waiting[2], receiver, sender, plain, abstract;
static pid_t child;
static char listener_path[108], receiver_path[108], sender_path[108], abstract_name[32];
static unsigned char bytes[BIG];
static unsigned generation = 1;

static socklen_t address(struct sockaddr_un *at, const char *name) {
  memset(at, 0, sizeof *at);
  at->sun_family = AF_UNIX;
  if (name[0]) {
    strcpy(at->sun_path, name);
    return offsetof(struct sockaddr_un, sun_path) + strlen(name) + 1;
  }
  strcpy(at->sun_path + 1, name + 1);
  return offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name + 1);
}

static int bound(int type, const char *name) {
  struct sockaddr_un at;
  socklen_t length = address(&at, name);
  int fd = socket(AF_UNIX, type, 0);
  CHECK(!bind(fd, (void *)&at, length), "%s: %m", name);
  return fd;
}

static int connected(int type, const char *name) {
  struct sockaddr_un at;
  socklen_t length = address(&at, name);
  int fd = socket(AF_UNIX, type, 0);
  CHECK(!connect(fd, (void *)&at, length), "%s: %m", name);
  return fd;
}

static void is_named(int fd, const char *name, int peer) {
  struct sockaddr_un at = {0}, wanted;
  socklen_t length = sizeof at, right = address(&wanted, name);
  CHECK(!(peer ? getpeername : getsockname)(fd, (void *)&at, &length), "%m");
  CHECK(length == right && !memcmp(&at, &wanted, length), "%d is called %s, not %s", fd, at.sun_path, name);
}

static void put(int fd, const char *text) {
  CHECK(send(fd, text, strlen(text), MSG_NOSIGNAL) == (ssize_t)strlen(text), "%d %s: %m", fd, text);
}

static void get(int fd, const char *text) {
  char line[100];
  ssize_t n = recv(fd, line, sizeof line, MSG_DONTWAIT);
  CHECK(n == (ssize_t)strlen(text) && !memcmp(line, text, n), "%d: %zd instead of %s: %m", fd, n, text);
}

static void is_empty(int fd) {
  char byte;
  CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "%d: %m", fd);
}

static void ends(int fd) {
  char byte;
  CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) == 0, "%d: %m", fd);
}

static void put_all(int fd, unsigned g) {
  fill(bytes, BIG, g);
  CHECK(send(fd, bytes, BIG, MSG_DONTWAIT) == BIG, "%m");
}

static void get_all(int fd, unsigned g) {
  CHECK(recv(fd, bytes, BIG, MSG_WAITALL) == BIG, "%m");
  CHECK(differs(bytes, BIG, g) == -1, "byte %ld", differs(bytes, BIG, g));
}

// What is under way from now on until the next check.
static void arm(void) {
  put_all(child_line[0], generation);
  put(self[0], "to the other");
  put(self[1], "and back");
  put(packets[0], "one");
  put(packets[0], "two and more");
  put(datagrams[0], "first");
  put(datagrams[0], "second one");
  put(datagrams[1], "back");
  put(client, "to the server");
  put(accepted, "to the client");
  put(sender, "with a name");
  struct sockaddr_un at;
  socklen_t length = address(&at, receiver_path);
  CHECK(sendto(plain, "without", 7, 0, (void *)&at, length) == 7, "%m");
  waiting[0] = connected(SOCK_STREAM, listener_path);
  waiting[1] = connected(SOCK_STREAM, listener_path);
}

static void flows(void) {
  get(self[1], "to the other");
  get(self[0], "and back");
  get(packets[1], "one");
  get(packets[1], "two and more");
  is_empty(packets[1]);
  get(datagrams[1], "first");
  get(datagrams[1], "second one");
  get(datagrams[0], "back");
  is_empty(datagrams[0]);
  get(accepted, "to the server");
  get(client, "to the client");
  struct sockaddr_un at = {0}, wanted;
  char line[100];
  socklen_t length = sizeof at, right = address(&wanted, sender_path);
  CHECK(recvfrom(receiver, line, sizeof line, MSG_DONTWAIT, (void *)&at, &length) == 11, "%m");
  CHECK(length == right && !memcmp(&at, &wanted, right), "%s", at.sun_path);
  get(receiver, "without");
  is_empty(receiver);
  for (int i = 0; i < 2; i++) {
    int fd = accept(listener, 0, 0);
    CHECK(fd >= 0, "%m");
    put(waiting[i], i ? "later" : "sooner");
    get(fd, i ? "later" : "sooner");
    close(fd);
    ends(waiting[i]);
    close(waiting[i]);
  }
  int fd = connected(SOCK_STREAM, abstract_name);
  close(accept(abstract, 0, 0));
  close(fd);
}

static void stays(void) {
  ends(half[1]);
  put(half[1], "the other way");
  get(half[0], "the other way");
  CHECK(send(half[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "%m");
  CHECK(send(dead[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "%m");
  is_named(listener, listener_path, 0);
  is_named(accepted, listener_path, 0);
  is_named(client, listener_path, 1);
  is_named(abstract, abstract_name, 0);
  is_named(sender, sender_path, 0);
  is_named(sender, receiver_path, 1);
  struct stat found;
  CHECK(!stat(listener_path, &found) && (found.st_mode & 07777) == 0741, "%o", found.st_mode);
  int type, size, nagle;
  struct timeval time;
  socklen_t length = sizeof type;
  CHECK(!getsockopt(packets[0], SOL_SOCKET, SO_TYPE, &type, &length) && type == SOCK_SEQPACKET, "%d", type);
  CHECK(!getsockopt(self[0], SOL_SOCKET, SO_SNDBUF, &size, &length) && size == 100000, "%d", size);
  CHECK(!getsockopt(datagrams[0], SOL_SOCKET, SO_BROADCAST, &nagle, &length) && nagle == 1, "%d", nagle);
  length = sizeof time;
  CHECK(!getsockopt(self[1], SOL_SOCKET, SO_RCVTIMEO, &time, &length) && time.tv_sec == 77, "%ld", (long)time.tv_sec);
  CHECK(!getsockopt(self[1], SOL_SOCKET, SO_SNDTIMEO, &time, &length) && time.tv_sec == 0, "%ld", (long)time.tv_sec);
  CHECK(fcntl(self[0], F_GETFL) & O_NONBLOCK, "%x", fcntl(self[0], F_GETFL));
  CHECK(!(fcntl(self[1], F_GETFL) & O_NONBLOCK), "%x", fcntl(self[1], F_GETFL));
}

static void check(void) {
  flows();
  stays();
  // The child sends back what it has found.
  get_all(child_line[0], generation + 100);
  if (generation == 1) {
    char byte;
    get(early[0], "left behind");
    ends(early[0]);
    CHECK(recv(reset[0], &byte, 1, MSG_DONTWAIT) == -1 && errno == ECONNRESET, "%m");
  }
  generation++;
  arm();
}

static void live(int line) {
  for (unsigned g = 1;; g++) {
    if (recv(line, bytes, 1, MSG_PEEK) != 1) _exit(0);
    get_all(line, g);
    put_all(line, g + 100);
  }
}

int main(int argc, char **argv) {
  CHECK(argc == 2, "usage: sockets DIRECTORY");
  sprintf(listener_path, "%s/listener", argv[1]);
  sprintf(receiver_path, "%s/receiver", argv[1]);
  sprintf(sender_path, "%s/sender", argv[1]);
  sprintf(abstract_name + 1, "ckpt-test-%d", getpid());
  CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, child_line), "%m");
  child = fork();
  if (!child) {
    close(child_line[0]);
    live(child_line[1]);
  }
  close(child_line[1]);
  int *streams[] = {half, dead, reset, self, early};
  for (int i = 0; i < 5; i++) CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, streams[i]), "%m");
  CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets), "%m");
  CHECK(!socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams), "%m");
  shutdown(half[0], SHUT_WR);
  close(dead[1]);
  put(reset[0], "unread");
  close(reset[1]);
  put(early[1], "left behind");
  close(early[1]);
  listener = bound(SOCK_STREAM, listener_path);
  CHECK(!listen(listener, 5) && !chmod(listener_path, 0741), "%m");
  client = connected(SOCK_STREAM, listener_path);
  accepted = accept(listener, 0, 0);
  receiver = bound(SOCK_DGRAM, receiver_path);
  sender = bound(SOCK_DGRAM, sender_path);
  struct sockaddr_un at;
  socklen_t length = address(&at, receiver_path);
  CHECK(!connect(sender, (void *)&at, length), "%m");
  plain = socket(AF_UNIX, SOCK_DGRAM, 0);
  abstract = bound(SOCK_STREAM, abstract_name);
  CHECK(!listen(abstract, 1), "%m");
  int size = 50000, one = 1;
  struct timeval time = {77, 0};
  CHECK(!setsockopt(self[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size), "%m");
  CHECK(!setsockopt(self[1], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time), "%m");
  CHECK(!setsockopt(datagrams[0], SOL_SOCKET, SO_BROADCAST, &one, sizeof one), "%m");
  fcntl(self[0], F_SETFL, O_NONBLOCK);
  arm();
  int code = obey(check), status;
  get_all(child_line[0], generation + 100);
  close(child_line[0]);
  CHECK(waitpid(child, &status, 0) == child && status == 0, "%x", status);
  return code;
}
