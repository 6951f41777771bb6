// SPDX-License-Identifier: LGPL-2.1-only
// A program that has the kernel tell what it writes to, by a userfaultfd(2) of its own. Each "check" but the first finds the
// one page that was written to since the last: nobody else has asked.
#include "subject.h"
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { PAGE = 4096, PAGES = 1024, OLD = 64 << 20 };

// As linux/fs.h of Linux 6.7 and userfaultfd.h have them.
struct region { uint64_t start, end, categories; };
struct scan {
  uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  uint64_t inverted, mask, anyof, returned;
};
#define PAGEMAP_SCAN _IOWR('f', 16, struct scan)
enum { WRITTEN = 2, REARM = 3, WP_UNPOPULATED = 1 << 13, WP_ASYNC = 1 << 15 };

static volatile char *watched;
static int pagemap;

static int written(void) {
  struct region found[8];
  uint64_t start = (uintptr_t)watched;
  struct scan scan = {.size = sizeof scan, .flags = REARM, .start = start, .end = start + PAGES * PAGE,
                      .vec = (uintptr_t)found, .vec_len = 8, .mask = WRITTEN, .returned = WRITTEN};
  int got = ioctl(pagemap, PAGEMAP_SCAN, &scan), pages = 0;
  CHECK(got >= 0, "PAGEMAP_SCAN: %m");
  for (int i = 0; i < got; i++) pages += (found[i].end - found[i].start) / PAGE;
  return pages;
}

static void begin(void) {
  int fd = syscall(SYS_userfaultfd, O_CLOEXEC | 1);
  CHECK(fd >= 0, "userfaultfd: %m");
  struct uffdio_api api = {UFFD_API, WP_UNPOPULATED | WP_ASYNC, 0};
  CHECK(!ioctl(fd, UFFDIO_API, &api), "UFFDIO_API: %m");
  watched = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(watched != MAP_FAILED, "%m");
  for (int i = 0; i < PAGES; i++) watched[i * PAGE] = 1;
  struct uffdio_register area = {{(uintptr_t)watched, PAGES * PAGE}, UFFDIO_REGISTER_MODE_WP, 0};
  CHECK(!ioctl(fd, UFFDIO_REGISTER, &area), "UFFDIO_REGISTER: %m");
  pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  CHECK(pagemap >= 0, "%m");
  written();
}

static void check(void) {
  if (!watched) {
    begin();
  } else {
    int pages = written();
    CHECK(pages == 1, "%d pages were written to", pages);
  }
  watched[5 * PAGE] = 2;
}

int main(void) {
  char *old = mmap(0, OLD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(old != MAP_FAILED, "%m");
  memset(old, 1, OLD);
  return obey(check);
}
