// SPDX-License-Identifier: LGPL-2.1-only
// hugetlb private|shared|memfd|sysv: huge pages of hugetlbfs, of which it has touched two of four. Says "none" where there are
// none, and writes into the file "kind" what pages it has. With a second argument a child has filled what is shared.
#include "subject.h"
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/wait.h>

enum { HUGE = 2 << 20, PAGES = 4 };

static unsigned char *area;
static unsigned generation = 1;

static int page_size(void) {
  char line[512];
  unsigned long start, size = 0;
  FILE *maps = fopen("/proc/self/smaps", "r");
  for (int inside = 0; maps && fgets(line, sizeof line, maps);) {
    if (sscanf(line, "%lx-%*x ", &start) == 1) inside = start == (unsigned long)area;
    if (inside) sscanf(line, "KernelPageSize: %lu", &size);
  }
  if (maps) fclose(maps);
  return (int)size;
}

static void check(void) {
  CHECK(differs(area, HUGE, generation) < 0 && differs(area + 2 * HUGE, HUGE, generation) < 0, "content");
  CHECK(not_zero(area + HUGE, 4096) < 0, "zeros");
  FILE *file = fopen("kind", "w");
  CHECK(file && fprintf(file, "%d", page_size()) > 0 && !fclose(file), "%m");
  generation++;
  fill(area, HUGE, generation), fill(area + 2 * HUGE, HUGE, generation);
}

static void *make(const char *how) {
  int flags = (!strcmp(how, "private") ? MAP_PRIVATE : MAP_SHARED) | MAP_ANONYMOUS | MAP_HUGETLB;
  if (!strcmp(how, "memfd")) {
    int fd = memfd_create("huge", MFD_HUGETLB);
    if (fd < 0 || ftruncate(fd, PAGES * HUGE)) return MAP_FAILED;
    return mmap(0, PAGES * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  if (!strcmp(how, "sysv")) {
    int id = shmget(IPC_PRIVATE, PAGES * HUGE, IPC_CREAT | 0600 | SHM_HUGETLB);
    if (id < 0) return MAP_FAILED;
    void *at = shmat(id, 0, 0);
    CHECK(!shmctl(id, IPC_RMID, 0), "%m");
    return at;
  }
  return mmap(0, PAGES * HUGE, PROT_READ | PROT_WRITE, flags, -1, 0);
}

int main(int argc, char **argv) {
  area = make(argv[1]);
  if (area == MAP_FAILED) {
    say("none\n");
    return 0;
  }
  pid_t child = argc > 2 ? fork() : 0;
  if (!child) fill(area, HUGE, generation), fill(area + 2 * HUGE, HUGE, generation);
  if (argc > 2 && !child) _exit(0);
  CHECK(!child || waitpid(child, 0, 0) == child, "%m");
  return obey(check);
}
