// SPDX-License-Identifier: LGPL-2.1-only
// container PROGRAM ARGS...: executes a program under a filter like that which containers have by default: clone3(2) is
// unknown (ENOSYS), namespaces, mounts, keys, kcmp(2) and pidfd_getfd(2) are refused (EPERM), ptrace(2) is not.
#include "subject.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define CLONE3 435
#define PIDFD_GETFD 438
#define NAMESPACES 0x7e020000

static struct sock_filter filter[128];
static unsigned short length;

static void add(unsigned short code, unsigned value, unsigned char yes, unsigned char no) {
  filter[length++] = (struct sock_filter)BPF_JUMP(code, value, yes, no);
}

static void load(size_t offset) { add(BPF_LD | BPF_W | BPF_ABS, (unsigned)offset, 0, 0); }

static void refuse(unsigned number, unsigned error) {
  add(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1);
  add(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error, 0, 0);
}

int main(int argc, char **argv) {
  const unsigned refused[] = {SYS_unshare, SYS_setns, SYS_mount, SYS_umount2, SYS_pivot_root, SYS_chroot, SYS_keyctl,
                              SYS_add_key, SYS_request_key, SYS_userfaultfd, SYS_perf_event_open, SYS_bpf, SYS_mbind,
                              SYS_set_mempolicy, SYS_get_mempolicy, SYS_kcmp, PIDFD_GETFD};
  CHECK(argc > 1, "no program");
  load(offsetof(struct seccomp_data, nr));
  for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) refuse(refused[i], EPERM);
  refuse(CLONE3, ENOSYS);
  add(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 3);
  load(offsetof(struct seccomp_data, args));
  add(BPF_JMP | BPF_JSET | BPF_K, NAMESPACES, 0, 1);
  add(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM, 0, 0);
  add(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
  struct sock_fprog program = {.len = length, .filter = filter};
  CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "%m");
  CHECK(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), "%m");
  execv(argv[1], argv + 1);
  CHECK(0, "%s: %m", argv[1]);
}
