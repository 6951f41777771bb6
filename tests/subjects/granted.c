// SPDX-License-Identifier: LGPL-2.1-only
// granted [lost]: what the kernel keeps for a process or for one thread of it beside files and memory. It checks what a
// restart restores; "lost" changes what it does not, as far as it may.
#include "subject.h"
#include <linux/capability.h>
#include <linux/securebits.h>
#include <pthread.h>
#include <sched.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define FILTER 0x7
#define SCORE 77

struct deadline {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t times[3];
};

static _Atomic int set, asked, answered;
static int deadline, without_tsc, locked;

static int number(const char *file, int base) {
  char text[32] = "";
  FILE *from = fopen(file, "r");
  CHECK(from && fgets(text, sizeof text, from), "%s: %m", file);
  fclose(from);
  return (int)strtol(text, 0, base);
}

static void put(const char *file, const char *text) {
  FILE *to = fopen(file, "w");
  CHECK(to && fputs(text, to) >= 0 && !fclose(to), "%s: %m", file);
}

static int tsc(void) {
  int mode = 0;
  CHECK(!prctl(PR_GET_TSC, &mode), "%m");
  return mode;
}

static void *alone(void *unused) {
  (void)unused;
  struct deadline attr = {48, 6, 0, 0, 0, {1000000, 100000000, 200000000}}, got = {0};
  CHECK(personality(ADDR_COMPAT_LAYOUT) >= 0, "%m");
  CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "%m");
  CHECK(!prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0), "%m");
  without_tsc = !prctl(PR_SET_TSC, PR_TSC_SIGSEGV);
  deadline = !syscall(SYS_sched_setattr, 0, &attr, 0);
  for (set = 1;;) {
    while (asked == answered) syscall(SYS_sched_yield);
    CHECK(personality(-1) == ADDR_COMPAT_LAYOUT, "personality %x", personality(-1));
    CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1, "no_new_privs");
    CHECK(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_EARLY, "PR_MCE_KILL");
    CHECK(!without_tsc || tsc() == PR_TSC_SIGSEGV, "PR_SET_TSC");
    CHECK(!syscall(SYS_sched_getattr, 0, &got, sizeof got, 0), "%m");
    CHECK(!deadline || (got.policy == 6 && !memcmp(got.times, attr.times, sizeof got.times)), "%u", got.policy);
    answered = asked;
  }
  return 0;
}

static void check(void) {
  CHECK(number("/proc/self/oom_score_adj", 10) == SCORE, "oom_score_adj");
  CHECK(number("/proc/self/coredump_filter", 16) == FILTER, "coredump_filter");
  CHECK(!personality(-1) && prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == locked, "of the main thread");
  CHECK(tsc() == PR_TSC_ENABLE && prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_LATE, "of the main thread");
  asked++;
  while (asked != answered) sched_yield();
}

// What a restart does not give back: the keys, and of root also capabilities and securebits.
static void lose(void) {
  struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct data[2];
  syscall(SYS_add_key, "user", "ckpt", "key", 3, -2);
  // LANDLOCK_ACCESS_FS_MAKE_SYM, by the numbers of landlock_create_ruleset(2) and landlock_restrict_self(2).
  uint64_t handled = 1 << 12;
  int rules = (int)syscall(444, &handled, sizeof handled, 0);
  CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "%m");
  CHECK(rules < 0 || !syscall(446, rules, 0), "%m");
  close(rules);
  locked = 1;
  if (geteuid()) return;
  prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP);
  CHECK(!syscall(SYS_capget, &head, data), "%m");
  data[0].permitted &= ~(1u << CAP_SYS_BOOT), data[0].effective &= data[0].permitted;
  CHECK(!syscall(SYS_capset, &head, data), "%m");
}

int main(int argc, char **argv) {
  (void)argv;
  char text[16];
  snprintf(text, sizeof text, "%d", SCORE);
  put("/proc/self/oom_score_adj", text);
  snprintf(text, sizeof text, "%#x", FILTER);
  put("/proc/self/coredump_filter", text);
  pthread_t thread;
  CHECK(!pthread_create(&thread, 0, alone, 0), "a thread");
  while (!set) sched_yield();
  CHECK(!prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0), "%m");
  if (argc > 1) lose();
  return obey(check);
}
