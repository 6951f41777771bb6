// SPDX-License-Identifier: LGPL-2.1-only
// unseen KIND: what a program has set that no file of /proc shows, or only that of one thread.
//   kept      what a restart gives back: huge pages, KSM, mappings to come that are locked, who is told of a pipe
//   lost      what it does not: namespaces, the root directory, capabilities of a thread, notices of a directory
//   filter    one thread has a seccomp filter that kills for most system calls
//   locked    the only thread has a filter that kills for all but what it needs
//   strict    one thread is in strict mode
//   segments  modify_ldt(2)
//   shown     a memfd with holes, mapped privately: pages that were not written show what is written to it
#include "subject.h"
#include <asm/ldt.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define SET_MERGE 67
#define GET_MERGE 68

static const char *kind;
static _Atomic int set;
static volatile unsigned long turns;
static int pages, merge, locked, ends[2];

// Pages of the memfd: one that the program has written in its private view, one that it has not, and the last; between them is a hole.
enum { OWN, SHOWN, LAST = 2047, SIZE };
static int file;
static char *view;
static unsigned char number;

static int is(const char *word) { return !strcmp(kind, word); }

static void *alone(void *unused) {
  if (is("filter")) {
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sched_yield, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog filter = {sizeof rules / sizeof *rules, rules};
    CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "%m");
    CHECK(!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter), "%m");
  }
  if (is("strict")) CHECK(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT), "%m");
  if (is("lost") && !geteuid()) {
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0}};
    CHECK(!unshare(CLONE_NEWUTS), "%m");
    CHECK(!syscall(SYS_capset, &head, none), "%m");
  }
  // Strict mode allows no call but read and write, and no yield.
  for (set = 1;; turns++)
    if (is("filter")) syscall(SYS_sched_yield);
  return unused;
}

static void lock(void) {
#define ALLOW(call) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
  struct sock_filter rules[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
      ALLOW(SYS_read),
      ALLOW(SYS_write),
      ALLOW(SYS_exit_group),
      ALLOW(SYS_rt_sigreturn),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
  };
  struct sock_fprog filter = {sizeof rules / sizeof *rules, rules};
  CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter), "%m");
}

static void keep(void) {
  struct rlimit limit;
  // The second is with PR_THP_DISABLE_EXCEPT_ADVISED (Linux 6.18).
  pages = prctl(PR_SET_THP_DISABLE, 1, 2, 0, 0) ? !prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) : 3;
  merge = !prctl(SET_MERGE, 1, 0, 0, 0);
  CHECK(!getrlimit(RLIMIT_MEMLOCK, &limit), "%m");
  // ckpt's own part of the program is locked, too.
  locked = limit.rlim_cur >= 8 << 20 && !mlockall(MCL_FUTURE | MCL_ONFAULT);
  CHECK(!pipe(ends) && !fcntl(ends[0], F_SETOWN, getpid()) && !fcntl(ends[0], F_SETSIG, SIGUSR1), "%m");
}

static void lose(void) {
  signal(SIGIO, SIG_IGN); // a checkpoint in this directory is a change
  int here = open(".", O_RDONLY | O_DIRECTORY);
  CHECK(here >= 0 && !fcntl(here, F_NOTIFY, DN_CREATE | DN_MULTISHOT), "%m");
  if (geteuid()) return;
  CHECK(!unshare(CLONE_NEWIPC) && !chroot("inner") && !chdir("/"), "%m");
}

static void put_page(int page, char byte) {
  char bytes[4096];
  memset(bytes, byte, sizeof bytes);
  CHECK(pwrite(file, bytes, sizeof bytes, page * 4096L) == sizeof bytes, "%m");
}

static void show(void) {
  file = memfd_create("shown", MFD_CLOEXEC);
  CHECK(file >= 0 && !ftruncate(file, SIZE * 4096L), "%m");
  put_page(OWN, 'f'), put_page(SHOWN, 'f'), put_page(LAST, 'f');
  view = mmap(0, SIZE * 4096L, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
  CHECK(view != MAP_FAILED, "%m");
  memset(view + OWN * 4096L, 'o', 4096);
}

static void check_shown(void) {
  struct stat now;
  CHECK(!fstat(file, &now) && now.st_blocks == 3 * 8, "%ld blocks", (long)now.st_blocks);
  CHECK(view[LAST * 4096L] == (number ? number : 'f'), "%d", view[LAST * 4096L]);
  number = number % 100 + 1;
  put_page(OWN, number), put_page(SHOWN, number), put_page(LAST, number);
  CHECK(view[OWN * 4096L] == 'o' && view[OWN * 4096L + 4095] == 'o', "%d", view[OWN * 4096L]);
  CHECK(view[SHOWN * 4096L] == number && view[LAST * 4096L + 4095] == number, "%d", view[SHOWN * 4096L]);
}

// VmLck in units of 1024 bytes.
static long locked_memory(void) {
  char line[128];
  long size = -1;
  FILE *file = fopen("/proc/self/status", "r");
  while (file && fgets(line, sizeof line, file) && sscanf(line, "VmLck: %ld", &size) != 1) continue;
  CHECK(file && !fclose(file) && size >= 0, "%m");
  return size;
}

static void check(void) {
  if (is("kept")) {
    CHECK(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == pages, "%d", prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
    CHECK(!merge || prctl(GET_MERGE, 0, 0, 0, 0) == 1, "PR_SET_MEMORY_MERGE");
    CHECK(fcntl(ends[0], F_GETOWN) == getpid() && fcntl(ends[0], F_GETSIG) == SIGUSR1, "%d", fcntl(ends[0], F_GETOWN));
    long before = locked_memory();
    char *page = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED && locked_memory() - before == (locked ? 4 : 0), "locked: %d", locked);
    CHECK(!munmap(page, 4096), "%m");
    return;
  }
  if (is("shown")) {
    check_shown();
    return;
  }
  if (is("segments")) {
    char table[8];
    CHECK(syscall(SYS_modify_ldt, 0, table, sizeof table) > 0, "%m");
    return;
  }
  if (is("locked")) return;
  for (unsigned long before = turns; turns == before;) sched_yield();
}

int main(int argc, char **argv) {
  pthread_t thread;
  CHECK(argc == 2, "usage: unseen KIND");
  kind = argv[1];
  if (is("kept")) keep();
  if (is("lost")) lose();
  if (is("shown")) show();
  if (is("locked")) lock();
  if (is("segments")) {
    struct user_desc segment = {.entry_number = 3, .limit = 4095, .seg_32bit = 1, .useable = 1};
    CHECK(!syscall(SYS_modify_ldt, 1, &segment, sizeof segment), "%m");
  }
  if (is("filter") || is("strict") || is("lost")) {
    CHECK(!pthread_create(&thread, 0, alone, 0), "%m");
    while (!set) sched_yield();
    // The call that ends the preparation may not have returned when it is set.
    for (unsigned long before = turns; turns == before;) sched_yield();
  }
  return obey(check);
}
