// SPDX-License-Identifier: LGPL-2.1-only
// mappings KIND: mappings of files and memory with something about them that is easily lost.
#include "subject.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

enum { PAGE = 4096, PAGES = 16, LENGTH = PAGES * PAGE, GUARDED = 3 };
enum { GUARD_INSTALL = 102, GUARD_REMOVE = 103, DROPPABLE = 8, ONFAULT = 1 };
static unsigned char *map;
static const char *kind;
static sigjmp_buf back;
static volatile int fault_signal;

static int is(const char *name) { return !strcmp(kind, name); }

static void on_fault(int number) {
  fault_signal = number;
  siglongjmp(back, 1);
}

// The signal that touching a byte raises, or 0.
static int fault(volatile unsigned char *p) {
  struct sigaction action = {.sa_handler = on_fault}, segv, bus;
  sigaction(SIGSEGV, &action, &segv), sigaction(SIGBUS, &action, &bus);
  fault_signal = 0;
  if (!sigsetjmp(back, 1)) (void)*p;
  sigaction(SIGSEGV, &segv, 0), sigaction(SIGBUS, &bus, 0);
  return fault_signal;
}

// The VmFlags of a mapping, and how it is shared.
static void flags(const void *at, char *text, size_t room) {
  FILE *file = fopen("/proc/self/smaps", "r");
  char line[512];
  int here = 0;
  text[0] = 0;
  while (file && fgets(line, sizeof line, file)) {
    unsigned long start, end;
    if (sscanf(line, "%lx-%lx ", &start, &end) == 2) here = start <= (unsigned long)at && (unsigned long)at < end;
    if (here && !strncmp(line, "VmFlags:", 8)) snprintf(text, room, "%s", line);
  }
  if (file) fclose(file);
  char *dirty = strstr(text, " sd");
  if (dirty) memmove(dirty, dirty + 3, strlen(dirty + 3) + 1);
}

enum { AREAS = 5 };
static unsigned char *areas[AREAS];
static char before[AREAS][512];

static unsigned char *area(int type) {
  void *p = mmap(0, 4 * PAGE, PROT_READ | PROT_WRITE, type | MAP_ANONYMOUS, -1, 0);
  // Neighbours of one kind would become one mapping.
  if (p != MAP_FAILED) mmap(0, PAGE, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  return p == MAP_FAILED ? 0 : p;
}

static void set_flags(void) {
  areas[0] = area(DROPPABLE);
  areas[1] = area(MAP_PRIVATE);
  if (areas[1] && syscall(SYS_mlock2, areas[1], 4 * PAGE, ONFAULT)) areas[1] = 0;
  areas[2] = area(MAP_PRIVATE), mlock(areas[2], 4 * PAGE);
  areas[3] = area(MAP_PRIVATE), madvise(areas[3], 4 * PAGE, MADV_DONTDUMP), madvise(areas[3], 4 * PAGE, MADV_SEQUENTIAL);
  areas[4] = area(MAP_SHARED), madvise(areas[4], 4 * PAGE, MADV_DONTFORK), madvise(areas[4], 4 * PAGE, MADV_RANDOM);
  for (int i = 0; i < AREAS; i++)
    if (areas[i]) flags(areas[i], before[i], sizeof before[i]);
}

static void check_flags(void) {
  char now[512];
  for (int i = 0; i < AREAS; i++) {
    if (!areas[i]) continue;
    flags(areas[i], now, sizeof now);
    CHECK(!strcmp(now, before[i]), "area %d has %swhere it had %s", i, now, before[i]);
  }
}

// Much more than a machine has, but only to be read.
static const size_t LARGE = (size_t)40 << 30;
static unsigned char *large_file, *large_zeros;

static void set_large(int fd) {
  CHECK(!ftruncate(fd, LARGE) && pwrite(fd, "end", 3, LARGE - 3) == 3, "a sparse file: %m");
  large_file = mmap(0, LARGE, PROT_READ, MAP_PRIVATE, fd, 0);
  large_zeros = mmap(0, LARGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(large_file != MAP_FAILED && large_zeros != MAP_FAILED, "mmap: %m");
}

static void check_large(void) {
  CHECK(!memcmp(large_file + LARGE - 3, "end", 3), "the file's end");
  CHECK(!large_file[0] && !large_zeros[LARGE / 2], "zeros");
}

// The file is written at a page that was not looked at before: who has it mapped sees that, but in pages of his own.
static char followed[64];

static void check_following(void) {
  static int page = 1;
  char byte = 'A' + page;
  int fd = open(followed, O_WRONLY);
  CHECK(fd >= 0, "%s: %m", followed);
  CHECK(pwrite(fd, &byte, 1, page * PAGE + 1) == 1 && pwrite(fd, "?", 1, 1) == 1, "%m");
  close(fd);
  CHECK(map[page * PAGE + 1] == byte, "page %d does not follow the file, it holds %d", page, map[page * PAGE + 1]);
  CHECK(map[1] == 'a' && map[2] == 'X', "the program's own page is lost: %d %d", map[1], map[2]);
  page++;
  for (int i = page; i < PAGES; i++) CHECK(map[i * PAGE + 1] == 'a' + i, "page %d holds %d", i, map[i * PAGE + 1]);
}

static void check(void) {
  if (is("follow")) {
    check_following();
    return;
  }
  if (is("large")) {
    check_large();
    return;
  }
  if (is("flags")) {
    check_flags();
    return;
  }
  if (is("protection")) {
    CHECK(!mprotect(map, LENGTH, PROT_READ | PROT_WRITE), "it cannot be made writable again: %m");
    map[5] = 'w';
    CHECK(!mprotect(map, LENGTH, PROT_READ), "%m");
  }
  if (is("shared-guard") && !madvise(map + GUARDED * PAGE, PAGE, GUARD_REMOVE)) {
    CHECK(map[GUARDED * PAGE + 1] == 'a' + GUARDED, "under the guard is %d", map[GUARDED * PAGE + 1]);
    CHECK(!madvise(map + GUARDED * PAGE, PAGE, GUARD_INSTALL), "%m");
  }
  for (int i = 0; i < PAGES; i++) {
    int guarded = i == GUARDED && (is("guard") || is("shared-guard"));
    int behind = i >= PAGES / 2 && is("end");
    int wanted = guarded ? SIGSEGV : behind ? SIGBUS : 0, got = fault(map + i * PAGE + 1);
    CHECK(got == wanted, "page %d: signal %d", i, got);
    if (!got) CHECK(map[i * PAGE + 1] == 'a' + i, "page %d holds %d", i, map[i * PAGE + 1]);
  }
}

int main(int argc, char **argv) {
  CHECK(argc == 2, "usage: mappings KIND");
  kind = argv[1];
  if (is("flags")) {
    set_flags();
    return obey(check);
  }
  char name[] = "mapped.XXXXXX";
  int fd = mkstemp(name), shared = is("protection") || is("shared-guard");
  CHECK(fd >= 0, "mkstemp: %m");
  if (is("large")) {
    set_large(fd);
    return obey(check);
  }
  for (int i = 0; i < (is("end") ? PAGES / 2 : PAGES); i++) {
    char page[PAGE];
    memset(page, 'a' + i, PAGE);
    CHECK(write(fd, page, PAGE) == PAGE, "write: %m");
  }
  if (is("shared-guard")) {
    map = mmap(0, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(map != MAP_FAILED && pread(fd, map, LENGTH, 0) == LENGTH, "mmap: %m");
  } else {
    map = mmap(0, LENGTH, PROT_READ | PROT_WRITE, shared ? MAP_SHARED : MAP_PRIVATE, fd, 0);
    CHECK(map != MAP_FAILED, "mmap: %m");
    map[is("follow") ? 2 : PAGE + 2] = 'X';
    strcpy(followed, name);
  }
  close(fd);
  if (is("protection")) CHECK(!mprotect(map, LENGTH, PROT_READ), "%m");
  // Older kernels have no guards in such mappings.
  if (is("guard") || is("shared-guard"))
    if (madvise(map + GUARDED * PAGE, PAGE, GUARD_INSTALL)) kind = "file";
  return obey(check);
}
