// SPDX-License-Identifier: LGPL-2.1-only
// own KIND: what the kernel keeps for a process and nobody else.
//   lease     leases for reading and writing, which tell of being broken by a signal with the descriptor
//   flock     a lock that a child took and both have: /proc shows one of them as its holder
//   seal      memory that is sealed (mseal(2))
//   overrun   a timer that has expired often, whose signal waits
//   rights    (root) capabilities, securebits, users and groups of two threads; a child has others
//   worker    (root) has fewer capabilities, as has a child
//   ambient   (root) the same, and the child is an ordinary user with one capability
//   jail      (root) a root directory, in which a child is, too
//   opened    (root) becomes an ordinary user that has a file open which is its own, and one which is root's
//   groups    (root) supplementary groups and the bounding set
//   dropped   (root) becomes an ordinary user
//   root      (root) a root directory
//   headless  the main thread has ended, another goes on with pipes, sockets, a lock, a mapping and a timer
//   status    the main thread has ended with status 3
//   mourned   as headless, with a child that is told of its parent's end, and dies of the main thread's when it is made
//   narrow    may have no more memory
//   children  children that have used a second of CPU time
#include "subject.h"
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <pthread.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

enum { PAGE = 4096 };
static const char *kind;
static int fd, other;
static pid_t child;
static char *memory;
static volatile sig_atomic_t told, of;

static int is(const char *word) { return !strcmp(kind, word); }

static void on_break(int number, siginfo_t *info, void *unused) {
  (void)unused;
  of = info->si_fd;
  told = number;
}

static void handle(int number) {
  struct sigaction action = {.sa_sigaction = on_break, .sa_flags = SA_SIGINFO};
  CHECK(!sigaction(number, &action, 0), "%m");
}

static int opened(const char *name, int flags) {
  int made = open(name, flags | O_CREAT, 0644);
  CHECK(made >= 0, "%s: %m", name);
  return made;
}

static void lease(void) {
  handle(SIGIO);
  handle(SIGUSR1);
  if (!fd) fd = opened("written", O_RDWR);
  if (!other) {
    close(opened("read", O_RDWR));
    other = opened("read", O_RDONLY);
  }
  CHECK(!fcntl(fd, F_SETLEASE, F_WRLCK) && !fcntl(other, F_SETLEASE, F_RDLCK), "%m");
  CHECK(!fcntl(other, F_SETSIG, SIGUSR1), "%m");
}

static void broken(const char *name, int flags, int number, int which) {
  told = 0;
  CHECK(open(name, flags | O_NONBLOCK) == -1 && errno == EWOULDBLOCK, "%s: %m", name);
  for (int i = 0; i < 1000 && !told; i++) nanosleep(&(struct timespec){0, 1000000}, 0);
  CHECK(told == number, "signal %d", told);
  CHECK(number == SIGIO || of == which, "of %d", of);
  CHECK(!fcntl(which, F_SETLEASE, F_UNLCK), "%m");
}

static volatile pid_t tid;
static char had[3][1024];

static void *stranger(void *unused) {
  for (;;) {
    tid = syscall(SYS_gettid);
    nanosleep(&(struct timespec){0, 1000000}, 0);
  }
  return unused;
}

// What the kernel says of users, groups and capabilities.
static void rights(const char *directory, pid_t id, char *text) {
  char name[64], line[256];
  *text = 0;
  snprintf(name, sizeof name, "%s%d/status", directory, id);
  FILE *file = fopen(name, "r");
  CHECK(file, "%s: %m", name);
  while (fgets(line, sizeof line, file))
    if (!strncmp(line, "Uid", 3) || !strncmp(line, "Gid", 3) || !strncmp(line, "Groups", 6) || !strncmp(line, "Cap", 3))
      strcat(text, line);
  fclose(file);
}

static void look(char texts[3][1024]) {
  for (tid = 0; !tid;) {}
  rights("/proc/self/task/", getpid(), texts[0]);
  rights("/proc/self/task/", tid, texts[1]);
  if (child) rights("/proc/", child, texts[2]);
}

// Gives up some of what root has.
static void give_up(void) {
  struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct data[2];
  gid_t groups[] = {7, 8, 9};
  CHECK(!syscall(SYS_capget, &head, data), "%m");
  data[0].inheritable = 1 << CAP_KILL;
  data[0].effective &= ~(1u << CAP_CHOWN);
  CHECK(!syscall(SYS_capset, &head, data), "%m");
  CHECK(!prctl(PR_CAPBSET_DROP, CAP_MKNOD), "%m");
  CHECK(!prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0), "%m");
  CHECK(!prctl(PR_SET_SECUREBITS, 1 << 4), "%m");
  CHECK(!setgroups(3, groups) && !setresgid(65534, 65533, 65532), "%m");
  child = fork();
  if (!child) {
    CHECK(!setresuid(4711, 4711, 4711), "%m");
    tid = 1;
    for (;;) pause();
  }
  CHECK(!setresuid(65534, 0, 65533), "%m");
}

// Gives up capabilities and makes a child that is like this process, or has another user and one of them.
static void make_worker(void) {
  struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct data[2], one[2] = {{1 << CAP_KILL, 1 << CAP_KILL, 1 << CAP_KILL}};
  CHECK(!syscall(SYS_capget, &head, data), "%m");
  CHECK(!prctl(PR_CAPBSET_DROP, CAP_MKNOD), "%m");
  data[0].permitted = data[0].effective &= ~(1u << CAP_MKNOD | 1u << CAP_CHOWN);
  CHECK(!syscall(SYS_capset, &head, data), "%m");
  child = fork();
  if (child) return;
  if (is("ambient")) {
    CHECK(!prctl(PR_SET_KEEPCAPS, 1) && !setresgid(4711, 4711, 4711) && !setresuid(4711, 4711, 4711), "%m");
    CHECK(!syscall(SYS_capset, &head, one), "%m");
    CHECK(!prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0), "%m");
  }
  for (;;) pause();
}

static int ends[2], pair[2];
static timer_t timer;
static volatile int turns;

static void *turner(void *unused) {
  for (;; turns++) nanosleep(&(struct timespec){0, 1000000}, 0);
  return unused;
}

static char head[1024];

static void await_end_of_head(void) {
  for (char state = 0, name[64], *text = head; state != 'Z';) {
    snprintf(name, sizeof name, "/proc/self/task/%d/stat", getpid());
    FILE *file = fopen(name, "r");
    CHECK(file && fgets(text, sizeof head, file), "%m");
    fclose(file);
    state = strrchr(text, ')')[2];
    CHECK(!strncmp(strchr(text, '('), "(head)", 6), "%s", text);
  }
}

static void without_head(void) {
  await_end_of_head();
  char got[2][4] = {{0}};
  CHECK(read(ends[0], got[0], 3) == 3 && read(pair[1], got[1], 3) == 3, "%m");
  CHECK(!strcmp(got[0], "one") && !strcmp(got[1], "two"), "%s %s", got[0], got[1]);
  CHECK(write(ends[1], "one", 3) == 3 && write(pair[0], "two", 3) == 3, "%m");
  CHECK(memory[0] == 7, "%d", memory[0]);
  struct itimerspec left;
  CHECK(!timer_gettime(timer, &left) && left.it_value.tv_sec > 800, "%m");
  for (int before = turns; turns == before;) nanosleep(&(struct timespec){0, 1000000}, 0);
  int again = open("file", O_RDWR);
  CHECK(again >= 0 && flock(again, LOCK_SH | LOCK_NB) == -1, "it is free");
  close(again);
}

static void check(void);
static void *body(void *unused) {
  await_end_of_head();
  if (is("mourned") && !fork() && !prctl(PR_SET_PDEATHSIG, SIGKILL))
    for (;;) pause();
  exit(obey(check));
  return unused;
}

static void lose_head(void) {
  struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2};
  CHECK(!pipe(ends) && !socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "%m");
  CHECK(write(ends[1], "one", 3) == 3 && write(pair[0], "two", 3) == 3, "%m");
  fd = opened("file", O_RDWR);
  CHECK(!flock(fd, LOCK_EX) && !ftruncate(fd, PAGE), "%m");
  memory = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(memory != MAP_FAILED, "%m");
  memory[0] = 7;
  CHECK(!timer_create(CLOCK_MONOTONIC, &event, &timer), "%m");
  CHECK(!timer_settime(timer, 0, &(struct itimerspec){{0, 0}, {1000, 0}}, 0), "%m");
  CHECK(!prctl(PR_SET_NAME, "head"), "%m");
  pthread_t threads[2];
  CHECK(!pthread_create(threads, 0, turner, 0) && !pthread_create(threads + 1, 0, body, 0), "no thread");
  pthread_exit(0);
}

static void with_status(void) {
  int status = -1;
  await_end_of_head();
  CHECK(sscanf(strrchr(head, ' '), "%d", &status) == 1 && status == 3 << 8, "%s", head);
}

static void check(void) {
  if (is("headless")) without_head();
  if (is("status")) with_status();
  char has[3][1024] = {{0}};
  if (is("rights") || is("groups") || is("dropped") || is("worker") || is("ambient")) {
    look(has);
    for (int i = 0; i < 3; i++) CHECK(!strcmp(had[i], has[i]), "%d: %s became %s", i, had[i], has[i]);
    CHECK(!is("rights") || prctl(PR_GET_SECUREBITS) == 1 << 4, "%x", prctl(PR_GET_SECUREBITS));
    CHECK(!is("dropped") || prctl(PR_GET_DUMPABLE) == 1, "%d", prctl(PR_GET_DUMPABLE));
  }
  if (is("root") || is("jail")) CHECK(!access("/inside", F_OK), "%m");
  if (is("jail")) {
    char there = 0;
    CHECK(write(pair[0], "?", 1) == 1 && read(pair[0], &there, 1) == 1 && there == 'y', "%c", there);
  }
  if (is("opened")) CHECK(geteuid() == 65533 && write(fd, "x", 1) == 1 && write(other, "x", 1) == 1, "%m");
  if (is("lease")) {
    CHECK(fcntl(fd, F_GETLEASE) == F_WRLCK && fcntl(other, F_GETLEASE) == F_RDLCK, "leases are lost");
    broken("written", O_RDONLY, SIGIO, fd);
    broken("read", O_WRONLY, SIGUSR1, other);
    lease();
  } else if (is("flock")) {
    int again = open("file", O_RDWR);
    CHECK(again >= 0 && flock(again, LOCK_SH | LOCK_NB) == -1, "it is free");
    close(again);
  } else if (is("seal")) {
    CHECK(memory[0] == 7 && memory[PAGE] == 8, "content");
    CHECK(munmap(memory, PAGE) == -1 && errno == EPERM, "%m");
    CHECK(!mprotect(memory + PAGE, PAGE, PROT_READ), "%m");
  }
}

static void end_with_status(void) {
  pthread_t thread;
  CHECK(!prctl(PR_SET_NAME, "head"), "%m");
  CHECK(!pthread_create(&thread, 0, body, 0), "no thread");
  syscall(SYS_exit, 3);
}

static void set(void) {
  if (is("headless") || is("mourned")) lose_head();
  if (is("status")) end_with_status();
  if (is("root") || is("jail")) CHECK(!mkdir("d", 0755) && !mkdir("d/inside", 0755) && !chroot("d") && !chdir("/"), "%m");
  if (is("rights")) give_up();
  if (is("worker") || is("ambient")) make_worker();
  if (is("jail")) {
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "%m");
    child = fork();
    for (char asked; !child;) {
      if (read(pair[1], &asked, 1) != 1) _exit(1);
      if (write(pair[1], access("/inside", F_OK) ? "n" : "y", 1) != 1) _exit(1);
    }
  }
  if (is("opened")) {
    fd = opened("mine", O_RDWR);
    other = opened("secret", O_RDWR);
    CHECK(!fchown(fd, 65533, 65533) && !fchmod(other, 0600), "%m");
    CHECK(!setgroups(0, 0) && !setresgid(65533, 65533, 65533) && !setresuid(65533, 65533, 65533), "%m");
  }
  if (is("dropped")) {
    CHECK(!setgroups(0, 0) && !setresgid(65533, 65533, 65533) && !setresuid(65533, 65533, 65533), "%m");
    CHECK(!prctl(PR_SET_DUMPABLE, 1), "%m");
  }
  if (is("groups")) {
    gid_t groups[] = {7, 8, 9};
    CHECK(!setgroups(3, groups) && !prctl(PR_CAPBSET_DROP, CAP_MKNOD), "%m");
  }
  if (is("rights") || is("groups") || is("dropped") || is("worker") || is("ambient")) {
    pthread_t thread;
    CHECK(!pthread_create(&thread, 0, stranger, 0), "no thread");
    do {
      nanosleep(&(struct timespec){0, 10000000}, 0);
      look(had);
    } while ((is("rights") && !strstr(had[2], "4711\t4711\t4711\t4711")) ||
             (is("ambient") && !strstr(had[2], "CapAmb:\t0000000000000020")));
  }
  if (is("lease")) lease();
  if (is("narrow")) CHECK(!setrlimit(RLIMIT_AS, &(struct rlimit){PAGE, PAGE}), "%m");
  if (is("flock")) {
    fd = opened("file", O_RDWR);
    CHECK(!flock(fd, LOCK_EX), "%m");
    child = fork();
    if (!child)
      for (;;) pause();
  }
  if (is("seal")) {
    memory = mmap(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED, "%m");
    memory[0] = 7;
    memory[PAGE] = 8;
    if (syscall(462, memory, PAGE, 0)) {
      say("none\n");
      exit(0);
    }
  }
  if (is("overrun")) {
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR2);
    CHECK(!sigprocmask(SIG_BLOCK, &blocked, 0), "%m");
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2};
    struct itimerspec often = {{0, 1000000}, {0, 1000000}};
    timer_t timer;
    CHECK(!timer_create(CLOCK_MONOTONIC, &event, &timer) && !timer_settime(timer, 0, &often, 0), "%m");
    for (sigset_t waits; sigpending(&waits), !sigismember(&waits, SIGUSR2);) {}
  }
  if (is("children")) {
    if (!fork()) {
      while (clock() < 11 * CLOCKS_PER_SEC / 10) {}
      _exit(0);
    }
    struct rusage used;
    CHECK(wait(0) > 0 && !getrusage(RUSAGE_CHILDREN, &used), "%m");
  }
}

int main(int count, char **arguments) {
  kind = count > 1 ? arguments[1] : "";
  set();
  int status = obey(check);
  if (child) kill(child, SIGKILL);
  return status;
}
