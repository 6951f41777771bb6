// SPDX-License-Identifier: LGPL-2.1-only
// TCP and UDP sockets of this process and a child of its own, in every state, with something under way in each.
#include "subject.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>

#define BIG 300000

struct pair {
  int client, server;
  struct sockaddr_storage names[2];
};

static struct pair child_line, small, big, narrow, six, mapped, half, deaf;
static int listener, six_listener, waiting[2], abandoned, reset, plain, bound_only, epoll;
static int udp, udp_client, udp_plain;
static struct sockaddr_storage at_listener, at_udp, at_udp_client, at_plain, at_bound;
static size_t in_big;
static unsigned char bytes[BIG];
static unsigned generation = 1;
static pid_t child;

static socklen_t size_of(const struct sockaddr_storage *at) {
  return at->ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
}

static void name_of(int fd, int peer, struct sockaddr_storage *at) {
  socklen_t length = sizeof *at;
  memset(at, 0, sizeof *at);
  CHECK(!(peer ? getpeername : getsockname)(fd, (void *)at, &length), "%d: %m", fd);
}

static void is_named(int fd, int peer, const struct sockaddr_storage *wanted) {
  struct sockaddr_storage at;
  name_of(fd, peer, &at);
  CHECK(!memcmp(&at, wanted, size_of(wanted)), "%d has port %d, not %d", fd,
        ntohs(((struct sockaddr_in *)&at)->sin_port), ntohs(((struct sockaddr_in *)wanted)->sin_port));
}

static int option(int fd, int level, int name) {
  int value = 0;
  socklen_t length = sizeof value;
  CHECK(!getsockopt(fd, level, name, &value, &length), "%d %d: %m", level, name);
  return value;
}

static void set(int fd, int level, int name, int value) {
  CHECK(!setsockopt(fd, level, name, &value, sizeof value), "%d %d: %m", level, name);
}

static int bound(int family, int type, const char *ip, struct sockaddr_storage *at) {
  int fd = socket(family, type, 0);
  memset(at, 0, sizeof *at);
  at->ss_family = family;
  void *to = family == AF_INET ? (void *)&((struct sockaddr_in *)at)->sin_addr : &((struct sockaddr_in6 *)at)->sin6_addr;
  CHECK(inet_pton(family, ip, to) == 1, "%s", ip);
  if (type == SOCK_STREAM) set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  if (family == AF_INET6) set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
  CHECK(!bind(fd, (void *)at, size_of(at)), "%s: %m", ip);
  name_of(fd, 0, at);
  return fd;
}

static int connected(const struct sockaddr_storage *to) {
  int fd = socket(to->ss_family, SOCK_STREAM, 0);
  // Whatever is left of the original's ends does not hinder the restart's.
  set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  CHECK(!connect(fd, (void *)to, size_of(to)), "%m");
  return fd;
}

static struct pair meet(int at, const struct sockaddr_storage *to) {
  struct pair pair = {.client = connected(to)};
  pair.server = accept(at, 0, 0);
  CHECK(pair.server >= 0, "%m");
  name_of(pair.client, 0, &pair.names[0]);
  name_of(pair.server, 0, &pair.names[1]);
  return pair;
}

static void keeps_names(struct pair *pair) {
  struct sockaddr_storage peer;
  is_named(pair->client, 0, &pair->names[0]);
  is_named(pair->server, 0, &pair->names[1]);
  name_of(pair->client, 1, &peer);
  CHECK(((struct sockaddr_in *)&peer)->sin_port == ((struct sockaddr_in *)&pair->names[1])->sin_port, "%d", pair->client);
  name_of(pair->server, 1, &peer);
  CHECK(((struct sockaddr_in *)&peer)->sin_port == ((struct sockaddr_in *)&pair->names[0])->sin_port, "%d", pair->server);
}

static void put(int fd, const char *text) {
  CHECK(send(fd, text, strlen(text), MSG_NOSIGNAL) == (ssize_t)strlen(text), "%d %s: %m", fd, text);
}

static void get(int fd, const char *text) {
  char line[100];
  ssize_t n = recv(fd, line, strlen(text), MSG_WAITALL);
  CHECK(n == (ssize_t)strlen(text) && !memcmp(line, text, n), "%d: %zd instead of %s: %m", fd, n, text);
}

static void is_empty(int fd) {
  char byte;
  CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "%d: %m", fd);
}

static void ends(int fd) {
  char byte;
  ssize_t n = recv(fd, &byte, 1, 0);
  CHECK(n == 0, "%d: %zd %m", fd, n);
}

// As much as both buffers take.
static size_t stuff(int fd) {
  size_t done = 0;
  for (;;) {
    unsigned char piece[1000];
    for (size_t i = 0; i < sizeof piece; i++) piece[i] = pattern(done + i, generation);
    ssize_t n = send(fd, piece, sizeof piece, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0) break;
    done += n;
  }
  CHECK(errno == EAGAIN, "%m");
  return done;
}

static void eat(int fd, size_t wanted, unsigned g) {
  for (size_t done = 0; done < wanted;) {
    size_t most = wanted - done < BIG ? wanted - done : BIG;
    ssize_t n = recv(fd, bytes, most, 0);
    CHECK(n > 0, "%zd after %zu of %zu: %m", n, done, wanted);
    for (ssize_t i = 0; i < n; i++) CHECK(bytes[i] == pattern(done + i, g), "byte %zu", done + i);
    done += n;
  }
  is_empty(fd);
}

static size_t in_narrow;

static void arm(void) {
  fill(bytes, BIG, generation);
  CHECK(send(child_line.client, bytes, BIG, 0) == BIG, "%m");
  put(small.client, "to the server");
  put(small.server, "to the client");
  put(six.client, "six");
  put(six.server, "ten");
  put(mapped.client, "four");
  put(mapped.server, "six");
  put(half.server, "goes on");
  set(small.client, IPPROTO_TCP, TCP_CORK, 1);
  put(small.client, " in a bottle");
  in_big = stuff(big.client);
  in_narrow = stuff(narrow.client);
  for (int i = 0; i < 2; i++) waiting[i] = connected(&at_listener);
  put(udp_client, "first");
  put(udp_client, "second one");
  CHECK(send(udp_client, "", 0, 0) == 0, "%m");
  CHECK(sendto(udp_plain, "plain", 5, 0, (void *)&at_udp, size_of(&at_udp)) == 5, "%m");
  CHECK(sendto(udp, "answer", 6, 0, (void *)&at_udp_client, size_of(&at_udp_client)) == 6, "%m");
}

static void comes(const char *text, const struct sockaddr_storage *from) {
  struct sockaddr_storage at = {0};
  socklen_t length = sizeof at;
  char line[100];
  ssize_t n = recvfrom(udp, line, sizeof line, MSG_DONTWAIT, (void *)&at, &length);
  CHECK(n == (ssize_t)strlen(text) && !memcmp(line, text, n), "%zd instead of %s: %m", n, text);
  CHECK(!memcmp(&at, from, size_of(from)), "from port %d", ntohs(((struct sockaddr_in *)&at)->sin_port));
}

static void flows(void) {
  get(small.server, "to the server in a bottle");
  get(small.client, "to the client");
  set(small.client, IPPROTO_TCP, TCP_CORK, 0);
  is_empty(small.server);
  get(six.server, "six");
  get(six.client, "ten");
  get(mapped.server, "four");
  get(mapped.client, "six");
  get(half.client, "goes on");
  eat(big.server, in_big, generation);
  eat(narrow.server, in_narrow, generation);
  for (int i = 0; i < 2; i++) {
    int fd = accept(listener, 0, 0);
    struct sockaddr_storage from;
    CHECK(fd >= 0, "%m");
    name_of(fd, 1, &from);
    is_named(waiting[i], 0, &from);
    is_named(waiting[i], 1, &at_listener);
    put(waiting[i], i ? "later" : "sooner");
    get(fd, i ? "later" : "sooner");
    close(waiting[i]);
    ends(fd);
    close(fd);
  }
  comes("first", &at_udp_client);
  comes("second one", &at_udp_client);
  comes("", &at_udp_client);
  comes("plain", &at_plain);
  is_empty(udp);
  get(udp_client, "answer");
  is_empty(udp_client);
}

static void watches(int fd, unsigned wanted) {
  struct epoll_event found[16];
  int n = epoll_wait(epoll, found, 16, 0);
  for (int i = 0; i < n; i++)
    if (found[i].data.fd == fd) {
      CHECK(found[i].events == wanted, "%d: %x, not %x", fd, found[i].events, wanted);
      return;
    }
  CHECK(!wanted, "nothing of %d among %d", fd, n);
}

static void stays(void) {
  keeps_names(&small);
  keeps_names(&big);
  keeps_names(&six);
  keeps_names(&mapped);
  keeps_names(&half);
  is_named(listener, 0, &at_listener);
  is_named(bound_only, 0, &at_bound);
  is_named(udp, 0, &at_udp);
  is_named(udp_client, 0, &at_udp_client);
  is_named(udp_client, 1, &at_udp);
  ends(half.server);
  CHECK(send(half.client, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "%m");
  ends(deaf.client);
  CHECK(option(small.client, IPPROTO_TCP, TCP_NODELAY) == 1, "%m");
  CHECK(option(small.server, IPPROTO_TCP, TCP_NODELAY) == 0, "%m");
  CHECK(option(small.server, SOL_SOCKET, SO_KEEPALIVE) == 1, "%m");
  CHECK(option(small.server, IPPROTO_TCP, TCP_KEEPIDLE) == 77, "%m");
  CHECK(option(small.client, IPPROTO_IP, IP_TOS) == 16, "%d", option(small.client, IPPROTO_IP, IP_TOS));
  CHECK(option(narrow.client, SOL_SOCKET, SO_SNDBUF) == 16384, "%d", option(narrow.client, SOL_SOCKET, SO_SNDBUF));
  // A dumper that was killed may have left more room.
  CHECK(option(narrow.server, SOL_SOCKET, SO_RCVBUF) >= 16384, "%d", option(narrow.server, SOL_SOCKET, SO_RCVBUF));
  CHECK(option(listener, SOL_SOCKET, SO_REUSEADDR) == 1, "%m");
  CHECK(option(listener, SOL_SOCKET, SO_RCVLOWAT) == 1, "%m");
  CHECK(option(big.server, SOL_SOCKET, SO_RCVLOWAT) == 1, "%d", option(big.server, SOL_SOCKET, SO_RCVLOWAT));
  CHECK(option(six_listener, IPPROTO_IPV6, IPV6_V6ONLY) == 0, "%m");
  CHECK(option(udp, SOL_SOCKET, SO_BROADCAST) == 1, "%m");
  struct linger linger;
  struct timeval time;
  socklen_t length = sizeof linger;
  CHECK(!getsockopt(six.client, SOL_SOCKET, SO_LINGER, &linger, &length), "%m");
  CHECK(linger.l_onoff == 1 && linger.l_linger == 5, "%d %d", linger.l_onoff, linger.l_linger);
  CHECK(!getsockopt(six.server, SOL_SOCKET, SO_LINGER, &linger, &length) && !linger.l_onoff, "%m");
  length = sizeof time;
  CHECK(!getsockopt(six.server, SOL_SOCKET, SO_RCVTIMEO, &time, &length) && time.tv_sec == 66, "%ld", (long)time.tv_sec);
  CHECK(fcntl(plain, F_GETFL) & O_NONBLOCK, "%x", fcntl(plain, F_GETFL));
  CHECK(!(fcntl(small.client, F_GETFL) & O_NONBLOCK), "%x", fcntl(small.client, F_GETFL));
  struct sockaddr_storage at;
  name_of(plain, 0, &at);
  CHECK(((struct sockaddr_in *)&at)->sin_port == 0, "%d", ((struct sockaddr_in *)&at)->sin_port);
}

static void check(void) {
  watches(listener, EPOLLIN);
  watches(small.server, EPOLLIN | EPOLLOUT);
  flows();
  watches(listener, 0);
  watches(small.server, EPOLLOUT);
  watches(big.client, EPOLLOUT);
  stays();
  // The child sends back what it has found.
  CHECK(recv(child_line.client, bytes, BIG, MSG_WAITALL) == BIG, "%m");
  CHECK(differs(bytes, BIG, generation + 100) == -1, "byte %ld", differs(bytes, BIG, generation + 100));
  if (generation == 1) {
    char byte;
    get(abandoned, "left behind");
    ends(abandoned);
    CHECK(recv(reset, &byte, 1, 0) == -1 && errno == ECONNRESET, "%m");
  }
  generation++;
  arm();
}

static void live(int line) {
  for (unsigned g = 1;; g++) {
    ssize_t n = recv(line, bytes, BIG, MSG_WAITALL);
    if (n == 0) _exit(0);
    CHECK(n == BIG && differs(bytes, BIG, g) == -1, "child: %zd, byte %ld", n, differs(bytes, BIG, g));
    fill(bytes, BIG, g + 100);
    CHECK(send(line, bytes, BIG, 0) == BIG, "child: %m");
  }
}

int main(void) {
  listener = bound(AF_INET, SOCK_STREAM, "127.0.0.1", &at_listener);
  CHECK(!listen(listener, 5), "%m");
  child_line = meet(listener, &at_listener);
  child = fork();
  if (!child) {
    close(child_line.client);
    close(listener);
    live(child_line.server);
  }
  close(child_line.server);
  small = meet(listener, &at_listener);
  big = meet(listener, &at_listener);
  half = meet(listener, &at_listener);
  deaf = meet(listener, &at_listener);
  struct pair gone = meet(listener, &at_listener);
  put(gone.client, "left behind");
  close(gone.client);
  abandoned = gone.server;
  gone = meet(listener, &at_listener);
  struct linger at_once = {1, 0}, soon = {1, 5};
  CHECK(!setsockopt(gone.client, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), "%m");
  close(gone.client);
  reset = gone.server;
  shutdown(half.client, SHUT_WR);
  shutdown(deaf.client, SHUT_RD);
  struct sockaddr_storage any, four;
  six_listener = bound(AF_INET6, SOCK_STREAM, "::", &any);
  CHECK(!listen(six_listener, 5), "%m");
  struct sockaddr_storage loopback = any;
  ((struct sockaddr_in6 *)&loopback)->sin6_addr = in6addr_loopback;
  six = meet(six_listener, &loopback);
  four = at_listener;
  ((struct sockaddr_in *)&four)->sin_port = ((struct sockaddr_in6 *)&any)->sin6_port;
  mapped = meet(six_listener, &four);
  struct sockaddr_storage at_narrow;
  int narrow_listener = bound(AF_INET, SOCK_STREAM, "127.0.0.1", &at_narrow);
  set(narrow_listener, SOL_SOCKET, SO_RCVBUF, 8192);
  CHECK(!listen(narrow_listener, 1), "%m");
  narrow = meet(narrow_listener, &at_narrow);
  close(narrow_listener);
  set(narrow.client, SOL_SOCKET, SO_SNDBUF, 8192);
  set(small.client, IPPROTO_TCP, TCP_NODELAY, 1);
  set(small.client, IPPROTO_IP, IP_TOS, 16);
  set(small.server, SOL_SOCKET, SO_KEEPALIVE, 1);
  set(small.server, IPPROTO_TCP, TCP_KEEPIDLE, 77);
  CHECK(!setsockopt(six.client, SOL_SOCKET, SO_LINGER, &soon, sizeof soon), "%m");
  struct timeval time = {66, 0};
  CHECK(!setsockopt(six.server, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time), "%m");
  plain = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  bound_only = bound(AF_INET, SOCK_STREAM, "127.0.0.1", &at_bound);
  udp = bound(AF_INET, SOCK_DGRAM, "127.0.0.1", &at_udp);
  set(udp, SOL_SOCKET, SO_BROADCAST, 1);
  udp_client = bound(AF_INET, SOCK_DGRAM, "127.0.0.1", &at_udp_client);
  CHECK(!connect(udp_client, (void *)&at_udp, size_of(&at_udp)), "%m");
  udp_plain = bound(AF_INET, SOCK_DGRAM, "127.0.0.1", &at_plain);
  epoll = epoll_create1(0);
  int watched[] = {listener, small.server, big.client};
  for (int i = 0; i < 3; i++) {
    struct epoll_event event = {EPOLLIN | (i ? EPOLLOUT : 0), {.fd = watched[i]}};
    CHECK(!epoll_ctl(epoll, EPOLL_CTL_ADD, watched[i], &event), "%m");
  }
  arm();
  int code = obey(check), status;
  shutdown(child_line.client, SHUT_WR);
  CHECK(recv(child_line.client, bytes, BIG, MSG_WAITALL) == BIG, "%m");
  CHECK(waitpid(child, &status, 0) == child && status == 0, "%x", status);
  return code;
}
