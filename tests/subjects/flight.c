// SPDX-License-Identifier: LGPL-2.1-only
// flight: descriptors that are under way in sockets (SCM_RIGHTS): among the bytes of a stream, with messages, in a socket
// that is itself under way, and on the way to a child; of files that the sender has, too, and of some that nobody has.
#include "subject.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

static int stream[2], packets[2], datagrams[2], to_child[2], ask[2], answer[2], file, event, inner, reader;
static unsigned round_;

static void pass(int through, const char *bytes, size_t length, const int *fds, size_t count) {
  struct iovec piece = {(void *)bytes, length};
  union { struct cmsghdr head; char room[CMSG_SPACE(8 * sizeof(int))]; } control;
  struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
  if (count) {
    memset(&control, 0, sizeof control);
    message.msg_control = &control;
    message.msg_controllen = CMSG_SPACE(count * sizeof(int));
    control.head = (struct cmsghdr){.cmsg_len = CMSG_LEN(count * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.head), fds, count * sizeof(int));
  }
  CHECK(sendmsg(through, &message, 0) == (ssize_t)length, "%m");
}

// Receives exactly these bytes and so many descriptors.
static void take(int from, const char *bytes, int *fds, size_t count) {
  char buffer[64];
  struct iovec piece = {buffer, sizeof buffer};
  union { struct cmsghdr head; char room[CMSG_SPACE(8 * sizeof(int))]; } control;
  struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  ssize_t got = recvmsg(from, &message, MSG_DONTWAIT);
  CHECK(got == (ssize_t)strlen(bytes) && !memcmp(buffer, bytes, strlen(bytes)), "%zd of %s: %m", got, bytes);
  struct cmsghdr *head = CMSG_FIRSTHDR(&message);
  if (!count) {
    CHECK(!head, "%s: descriptors", bytes);
    return;
  }
  CHECK(head && head->cmsg_type == SCM_RIGHTS && head->cmsg_len == CMSG_LEN(count * sizeof(int)), "%s", bytes);
  memcpy(fds, CMSG_DATA(head), count * sizeof(int));
}

static void holds(int fd, const char *bytes) {
  char buffer[64];
  ssize_t got = read(fd, buffer, sizeof buffer);
  CHECK(got == (ssize_t)strlen(bytes) && !memcmp(buffer, bytes, strlen(bytes)), "%zd of %s: %m", got, bytes);
}

static void arm(void) {
  char name[32];
  int ends[2], pair[2], fds[2];
  // A pipe of which nobody has an end but for the one that is under way.
  CHECK(!pipe(ends) && write(ends[1], "hello", 5) == 5, "%m");
  close(ends[1]);
  pass(stream[0], "plain", 5, 0, 0);
  pass(stream[0], "X", 1, ends, 1);
  close(ends[0]);
  pass(stream[0], "!", 1, 0, 0);
  snprintf(name, sizeof name, "nameless%u", round_);
  fds[0] = file;
  fds[1] = memfd_create("flying", 0);
  CHECK(fds[1] >= 0 && pwrite(fds[1], name, strlen(name), 4096) > 0 && lseek(fds[1], 4096, SEEK_SET) == 4096, "%m");
  CHECK(lseek(file, 3 + round_, SEEK_SET) == 3 + round_, "%m");
  pass(stream[0], "and", 3, fds, 2);
  close(fds[1]);
  pass(stream[0], "end", 3, 0, 0);
  // With messages, an empty one among them.
  pass(packets[0], "first", 5, 0, 0);
  pass(packets[0], "second", 6, &event, 1);
  uint64_t seven = 7;
  CHECK(write(event, &seven, 8) == 8, "%m");
  CHECK(!pipe(ends), "%m");
  CHECK(fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0, "%m");
  pass(datagrams[0], "", 0, ends, 1);
  pass(datagrams[0], "last", 4, ends + 1, 1);
  close(ends[0]), close(ends[1]);
  // A socket with a descriptor in its queue.
  CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair) && !pipe(ends), "%m");
  pass(pair[0], "deep", 4, ends + 1, 1);
  pass(packets[0], "inside", 6, pair + 1, 1);
  close(pair[1]), close(ends[1]);
  inner = pair[0], reader = ends[0];
  // To another process.
  CHECK(!pipe(ends) && write(ends[1], "child", 5) == 5, "%m");
  pass(to_child[0], "go", 2, ends, 1);
  close(ends[0]), close(ends[1]);
}

static void serve(void) {
  char byte;
  int fd;
  while (read(ask[0], &byte, 1) == 1) {
    take(to_child[1], "go", &fd, 1);
    holds(fd, "child");
    holds(fd, "");
    close(fd);
    CHECK(write(answer[1], "k", 1) == 1, "%m");
  }
  _exit(0);
}

static void check(void) {
  char name[32];
  int fds[2], deep;
  char plain[8];
  // Who reads without asking for descriptors gets none.
  CHECK(read(stream[1], plain, 5) == 5 && !memcmp(plain, "plain", 5), "%m");
  take(stream[1], "X", fds, 1);
  holds(fds[0], "hello");
  holds(fds[0], "");
  close(fds[0]);
  take(stream[1], "!and", fds, 2);
  CHECK(lseek(fds[0], 0, SEEK_CUR) == 3 + round_, "%m");
  CHECK(lseek(fds[0], 1, SEEK_CUR) == lseek(file, 0, SEEK_CUR), "another description");
  CHECK((fcntl(fds[0], F_GETFL) & (O_APPEND | O_NONBLOCK | O_ACCMODE)) == (O_APPEND | O_RDWR), "%x", fcntl(fds[0], F_GETFL));
  snprintf(name, sizeof name, "nameless%u", round_);
  holds(fds[1], name);
  close(fds[0]), close(fds[1]);
  take(stream[1], "end", 0, 0);
  take(packets[1], "first", 0, 0);
  take(packets[1], "second", fds, 1);
  uint64_t count;
  CHECK(read(fds[0], &count, 8) == 8 && count == 7, "%m");
  CHECK(read(event, &count, 8) < 0 && errno == EAGAIN, "another description");
  close(fds[0]);
  take(datagrams[1], "", fds, 1);
  take(datagrams[1], "last", fds + 1, 1);
  CHECK(read(fds[0], plain, 1) < 0 && errno == EAGAIN, "%m");
  CHECK(write(fds[1], "x", 1) == 1, "%m");
  holds(fds[0], "x");
  close(fds[0]), close(fds[1]);
  take(packets[1], "inside", fds, 1);
  take(fds[0], "deep", &deep, 1);
  CHECK(write(deep, "w", 1) == 1 && write(fds[0], "s", 1) == 1, "%m");
  close(deep), close(fds[0]);
  holds(reader, "w");
  holds(reader, "");
  holds(inner, "s");
  close(reader), close(inner);
  CHECK(write(ask[1], "?", 1) == 1 && read(answer[0], plain, 1) == 1, "child: %m");
  round_++;
  arm();
}

int main(void) {
  file = open("flight.txt", O_RDWR | O_CREAT | O_APPEND, 0644);
  event = eventfd(0, EFD_NONBLOCK);
  CHECK(file >= 0 && event >= 0 && !ftruncate(file, 4000), "%m");
  CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, stream) && !socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets), "%m");
  CHECK(!socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams) && !socketpair(AF_UNIX, SOCK_STREAM, 0, to_child), "%m");
  CHECK(!pipe(ask) && !pipe(answer), "%m");
  pid_t child = fork();
  CHECK(child >= 0, "%m");
  if (!child) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    serve();
  }
  arm();
  return obey(check);
}
