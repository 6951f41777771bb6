// SPDX-License-Identifier: LGPL-2.1-only
// refuse ERROR NUMBER PROGRAM ARGS...: executes a program under a filter that answers one system call with an error.
#include "subject.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>

int main(int argc, char **argv) {
  CHECK(argc > 3, "no program");
  const unsigned error = (unsigned)atoi(argv[1]), number = (unsigned)atoi(argv[2]);
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = filter};
  CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "%m");
  CHECK(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), "%m");
  execv(argv[3], argv + 3);
  CHECK(0, "%s: %m", argv[3]);
}
