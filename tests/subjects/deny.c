// SPDX-License-Identifier: LGPL-2.1-only
// deny NUMBER ARGUMENT VALUE [NUMBER ARGUMENT VALUE ...] -- PROGRAM ARGS...: executes a program for which the kernel
// refuses some system calls with EPERM: those with these numbers, where the argument with the index ARGUMENT is VALUE (its
// lower half; ARGUMENT -1: always). Addresses are not random, so that a restarter lies where the program does.
#include "subject.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/personality.h>
#include <sys/prctl.h>

static struct sock_filter filter[64];
static unsigned short length;

static void add(unsigned short code, unsigned value, unsigned char yes, unsigned char no) {
  filter[length++] = (struct sock_filter)BPF_JUMP(code, value, yes, no);
}

static void refuse(unsigned number, int argument, unsigned value) {
  add(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr), 0, 0);
  add(BPF_JMP | BPF_JEQ | BPF_K, number, 0, argument < 0 ? 1 : 3);
  if (argument >= 0) {
    add(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args) + 8u * (unsigned)argument, 0, 0);
    add(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1);
  }
  add(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM, 0, 0);
}

int main(int argc, char **argv) {
  int i = 1;
  for (; i + 3 < argc && strcmp(argv[i], "--"); i += 3)
    refuse((unsigned)strtoul(argv[i], 0, 0), atoi(argv[i + 1]), (unsigned)strtoul(argv[i + 2], 0, 0));
  CHECK(i + 1 < argc && !strcmp(argv[i], "--"), "no program");
  add(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
  struct sock_fprog program = {.len = length, .filter = filter};
  CHECK(personality(ADDR_NO_RANDOMIZE) >= 0, "%m");
  CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "%m");
  if (length > 1) CHECK(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), "%m");
  execv(argv[i + 1], argv + i + 1);
  CHECK(0, "%s: %m", argv[i + 1]);
}
