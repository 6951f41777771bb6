// SPDX-License-Identifier: LGPL-2.1-only
// What belongs to the process: arguments, environment, auxiliary vector, name, directory, umask, limits.
#include "subject.h"
#include <fcntl.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

static const char *const files[] = {"/proc/self/cmdline", "/proc/self/environ", "/proc/self/auxv", "/proc/self/comm"};
static char texts[4][65536], now[65536], directory[4096];
static size_t lengths[4];
static struct rlimit limits[RLIM_NLIMITS];
static unsigned long entry;

static size_t slurp(const char *name, char *to) {
  int fd = open(name, O_RDONLY);
  CHECK(fd >= 0, "%s: %m", name);
  size_t n = 0;
  for (ssize_t got; (got = read(fd, to + n, 65536 - n)) > 0; n += got) {}
  close(fd);
  return n;
}

static void check(void) {
  for (int i = 0; i < 4; i++) {
    size_t n = slurp(files[i], now);
    int same = n == lengths[i] && !memcmp(now, texts[i], n);
    CHECK(same, "%s has changed: %.60s", files[i], now);
  }
  CHECK(getauxval(AT_ENTRY) == entry, "getauxval");
  CHECK(getenv("CKPT_TEST") && !strcmp(getenv("CKPT_TEST"), "of the start"), "environment: %s", getenv("CKPT_TEST"));
  CHECK(prctl(PR_GET_NAME, now) == 0 && !strcmp(now, "a subject"), "name %s", now);
  CHECK(getcwd(now, sizeof now) && !strcmp(now, directory), "directory %s instead of %s", now, directory);
  mode_t mask = umask(031);
  CHECK(mask == 031, "umask %o", mask);
  for (int i = 0; i < RLIM_NLIMITS; i++) {
    struct rlimit limit;
    getrlimit(i, &limit);
    CHECK(limit.rlim_cur == limits[i].rlim_cur && limit.rlim_max == limits[i].rlim_max,
          "limit %d: %ld %ld instead of %ld %ld", i, (long)limit.rlim_cur, (long)limit.rlim_max,
          (long)limits[i].rlim_cur, (long)limits[i].rlim_max);
  }
}

static void lower(int which, rlim_t to) {
  struct rlimit limit;
  getrlimit(which, &limit);
  if (limit.rlim_max == RLIM_INFINITY || limit.rlim_max > to) limit.rlim_cur = to;
  CHECK(!setrlimit(which, &limit), "%m");
}

int main(void) {
  prctl(PR_SET_NAME, "a subject");
  mkdir("below", 0755);
  CHECK(!chdir("below"), "%m");
  CHECK(getcwd(directory, sizeof directory), "%m");
  umask(031);
  lower(RLIMIT_NOFILE, 200);
  lower(RLIMIT_CORE, 4096);
  lower(RLIMIT_DATA, 1 << 30);
  lower(RLIMIT_STACK, 4 << 20);
  entry = getauxval(AT_ENTRY);
  for (int i = 0; i < RLIM_NLIMITS; i++) getrlimit(i, &limits[i]);
  for (int i = 0; i < 4; i++) lengths[i] = slurp(files[i], texts[i]);
  return obey(check);
}
