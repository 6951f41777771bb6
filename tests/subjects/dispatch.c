// SPDX-License-Identifier: LGPL-2.1-only
// dispatch: gets its own system calls from a part of its text as SIGSYS (PR_SET_SYSCALL_USER_DISPATCH), as emulators do.
// Says "unknown" instead of "ready" where the kernel cannot.
#include "subject.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#define PR_SYS_DISPATCH_ON 1
#endif
enum { EMULATED = 0x1234 };

static volatile unsigned char blocks;
static volatile int dispatched;

static void handler(int signal, siginfo_t *info, void *context) {
  (void)signal;
  blocks = 0;
  ucontext_t *interrupted = context;
  if (info->si_syscall == EMULATED) {
    dispatched++;
    interrupted->uc_mcontext.gregs[REG_RAX] = EMULATED + 1;
  }
}

static void check(void) {
  for (int i = 0; i < 3; i++) {
    int before = dispatched;
    blocks = 1;
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(EMULATED) : "rcx", "r11", "memory");
    CHECK(!blocks, "the selector");
    CHECK(result == EMULATED + 1 && dispatched == before + 1, "an emulated call gave %ld, %d times", result,
          dispatched - before);
  }
}

int main(void) {
  struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
  sigaction(SIGSYS, &action, 0);
  if (prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, 0L, 0L, &blocks)) {
    say("unknown\n");
    return 0;
  }
  check();
  return obey(check);
}
