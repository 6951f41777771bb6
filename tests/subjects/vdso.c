// SPDX-License-Identifier: LGPL-2.1-only
// The vdso lies where the program expects it, its clocks advance, and its calls stay calls without the kernel.
#include "subject.h"
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

enum { SECCOMP_MODE_STRICT = 1 };
static int without_kernel;
static struct timespec last;

// In strict mode every system call but read, write and exit kills the child.
static int stays_out_of_the_kernel(void) {
  pid_t child = fork();
  if (!child) {
    struct timespec t;
    struct timeval v;
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
    for (int i = 0; i < 1000; i++) {
      clock_gettime(CLOCK_MONOTONIC, &t);
      clock_gettime(CLOCK_REALTIME, &t);
      gettimeofday(&v, 0);
      time(0);
    }
    syscall(SYS_exit, 0);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child, "%m");
  return status == 0;
}

static long maps_begin(const char *name) {
  char line[512];
  long begin = 0;
  FILE *maps = fopen("/proc/self/maps", "r");
  while (fgets(line, sizeof line, maps))
    if (strstr(line, name)) begin = strtol(line, 0, 16);
  fclose(maps);
  return begin;
}

static void check(void) {
  unsigned char *vdso = (void *)getauxval(AT_SYSINFO_EHDR);
  CHECK(vdso && !memcmp(vdso, "\177ELF", 4), "no vdso at %p", vdso);
  CHECK(maps_begin("[vdso]") == (long)vdso, "/proc/self/maps has the vdso at %lx, not at %p", maps_begin("[vdso]"), vdso);
  CHECK(maps_begin("[vvar]"), "there is no vvar page");
  struct timespec now, kernel;
  clock_gettime(CLOCK_MONOTONIC, &now);
  CHECK(now.tv_sec > last.tv_sec || (now.tv_sec == last.tv_sec && now.tv_nsec > last.tv_nsec), "the clock stands still");
  last = now;
  syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &kernel);
  CHECK(kernel.tv_sec >= now.tv_sec && kernel.tv_sec - now.tv_sec <= 60, "vdso %ld, kernel %ld", now.tv_sec, kernel.tv_sec);
  syscall(SYS_clock_gettime, CLOCK_REALTIME, &kernel);
  CHECK(labs(time(0) - kernel.tv_sec) <= 60, "time() says %ld, the kernel %ld", (long)time(0), kernel.tv_sec);
  CHECK(stays_out_of_the_kernel() == without_kernel, "the clocks were %s system calls", without_kernel ? "no" : "all");
}

int main(void) {
  clock_gettime(CLOCK_MONOTONIC, &last);
  without_kernel = stays_out_of_the_kernel();
  return obey(check);
}
