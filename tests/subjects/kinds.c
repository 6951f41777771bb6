// SPDX-License-Identifier: LGPL-2.1-only
// kinds KIND...: has something that is in the way of a checkpoint, or that it goes without; several of them with children
// of their own, one each after the first. Says "none" instead of "ready" where the kernel has no such thing.
#include "subject.h"
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>

static _Atomic int ready;
static const char *kind;

static int is(const char *word) { return !strcmp(kind, word); }

static char *page(void) {
  char *at = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(at != MAP_FAILED, "%m");
  return at;
}

static void *thread(void *unused) {
  if (is("files")) CHECK(!unshare(CLONE_FILES), "%m");
  if (is("umask")) CHECK(!unshare(CLONE_FS), "%m");
  if (is("owner")) CHECK(!syscall(SYS_setresuid, 65534, 65534, 65534), "%m");
  for (ready = 1;;) pause();
  return unused;
}

static int sleeper(void *unused) {
  (void)unused;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (;;) pause();
  return 0;
}

static void install(void) {
  struct sock_filter rule = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  struct sock_fprog filter = {1, &rule};
  CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter), "%m");
}

// What has to be root's is none for others.
static void begin(void) {
  int root = !geteuid();
  if (is("aio")) {
    unsigned long context = 0;
    NONE(!syscall(SYS_io_setup, 4, &context));
  } else if (is("uring") || is("closed")) {
    unsigned parameters[30] = {0};
    long ring = syscall(425, 4, parameters);
    NONE(ring >= 0);
    NONE(mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring, 0) != MAP_FAILED);
    if (is("closed")) close(ring);
  } else if (is("worker")) {
    // A request that a thread of the kernel's makes, which then waits for more of them.
    struct io_uring_params parameters = {0};
    long ring = syscall(425, 4, &parameters);
    NONE(ring >= 0);
    size_t size = parameters.sq_off.array + parameters.sq_entries * 4;
    char *sq = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    struct io_uring_sqe *entry = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    NONE(sq != MAP_FAILED && entry != MAP_FAILED);
    static char byte;
    *entry = (struct io_uring_sqe){.opcode = IORING_OP_READ, .flags = IOSQE_ASYNC, .len = 1};
    entry->fd = open("/proc/self/exe", O_RDONLY);
    entry->addr = (unsigned long)&byte;
    *(unsigned *)(sq + parameters.sq_off.array) = 0;
    *(unsigned *)(sq + parameters.sq_off.tail) = 1;
    NONE(syscall(426, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) == 1);
  } else if (is("attributes")) {
    int fd = open("removed", O_RDWR | O_CREAT, 0600);
    NONE(!fsetxattr(fd, "user.of", "it", 2, 0) && !unlink("removed"));
  } else if (is("uffd")) {
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC | 1);
    struct uffdio_api api = {UFFD_API, 0, 0};
    NONE(fd >= 0 && !ioctl(fd, UFFDIO_API, &api));
    struct uffdio_register area = {{(unsigned long)page(), 4096}, UFFDIO_REGISTER_MODE_MISSING, 0};
    CHECK(!ioctl(fd, UFFDIO_REGISTER, &area), "%m");
  } else if (is("secret")) {
    int fd = syscall(447, 0);
    NONE(fd >= 0 && !ftruncate(fd, 4096));
    NONE(mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED);
  } else if (is("watch")) {
    int fd = inotify_init();
    CHECK(open("removed", O_RDWR | O_CREAT, 0600) >= 0, "%m");
    CHECK(inotify_add_watch(fd, "removed", IN_MODIFY) > 0 && !unlink("removed"), "%m");
  } else if (is("notices")) {
    signal(SIGIO, SIG_IGN);
    int here = open(".", O_RDONLY | O_DIRECTORY);
    CHECK(!fcntl(here, F_NOTIFY, DN_DELETE | DN_MULTISHOT), "%m");
  } else if (is("cwd")) {
    CHECK(!mkdir("gone", 0755) && !chdir("gone") && !rmdir("../gone"), "%m");
  } else if (is("child") || is("fork")) {
    pid_t child = fork();
    if (!child) sleeper(0);
  } else if (is("memory")) {
    static char stack[1 << 14];
    CHECK(clone(sleeper, stack + sizeof stack, CLONE_VM | SIGCHLD, 0) > 0, "%m");
  } else if (is("traced")) {
    pid_t child = fork();
    if (!child) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      CHECK(!ptrace(PTRACE_TRACEME), "%m");
      raise(SIGSTOP);
      for (;;) pause();
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSTOPPED(status), "%m");
  } else if (is("files") || is("umask") || (is("owner") && root)) {
    pthread_t made;
    CHECK(!pthread_create(&made, 0, thread, 0), "%m");
    while (!ready) sched_yield();
  } else if (is("slots")) {
    // struct user_desc, below 4 GiB: int $0x80 is the one way to set_thread_area(2) here.
    unsigned *entry = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    CHECK(entry != MAP_FAILED, "%m");
    entry[0] = -1u, entry[1] = 4096, entry[2] = 4095, entry[3] = 0x41;
    int made;
    __asm__ volatile("int $0x80" : "=a"(made) : "a"(243), "b"(entry) : "memory", "r8", "r9", "r10", "r11");
    NONE(!made);
  } else if ((is("immutable") || is("appended")) && root) {
    int fd = open("kept", O_RDWR | O_CREAT, 0600);
    int flags = is("immutable") ? FS_IMMUTABLE_FL : FS_APPEND_FL;
    NONE(fd >= 0 && !ioctl(fd, FS_IOC_SETFLAGS, &flags));
  } else if (is("spaces") && root) {
    CHECK(!unshare(CLONE_NEWUTS), "%m");
  } else if (is("keys")) {
    NONE(syscall(SYS_add_key, "user", "ckpt", "key", 3, -2) > 0);
  } else if (is("segments")) {
    struct { unsigned number, base, limit, flags; } segment = {3, 0, 4095, 1 | 1 << 6};
    NONE(!syscall(SYS_modify_ldt, 1, &segment, sizeof segment));
  } else if (is("filter")) {
    install();
  } else if (!is("nothing")) {
    NONE(0);
  }
}

static void check(void) {}

int main(int argc, char **argv) {
  CHECK(argc > 1, "usage: kinds KIND...");
  for (int i = 2; i < argc; i++) {
    int ends[2];
    CHECK(!pipe(ends), "%m");
    pid_t child = fork();
    if (!child) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      kind = argv[i];
      begin();
      CHECK(write(ends[1], "x", 1) == 1, "%m");
      close(ends[0]), close(ends[1]);
      for (;;) pause();
    }
    char byte;
    close(ends[1]);
    NONE(read(ends[0], &byte, 1) == 1);
    close(ends[0]);
  }
  kind = argv[1];
  begin();
  int outcome = obey(check), none = 0;
  // Else nobody could remove it.
  if (is("immutable") || is("appended")) CHECK(!ioctl(open("kept", O_RDONLY), FS_IOC_SETFLAGS, &none), "%m");
  return outcome;
}
