// SPDX-License-Identifier: LGPL-2.1-only
// Shared anonymous memory: its bytes, two views of one area, and a mapped file, private and shared.
#include "subject.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { PAGE = 4096, AREA = 16 * PAGE };
static unsigned generation;
static unsigned char *shared, *view, *private_file, *shared_file;
static int file;

static void arm(void) {
  generation++;
  fill(shared, AREA, generation);
  fill(private_file + PAGE, PAGE, generation);
}

static void check(void) {
  CHECK(differs(shared, AREA, generation) < 0, "shared memory");
  CHECK(differs(view, AREA, generation) < 0, "second view of shared memory");
  shared[7]++;
  CHECK(view[7] == shared[7], "the two views have parted");
  pid_t child = fork();
  if (!child) {
    view[8] = 99;
    _exit(0);
  }
  int status = 1;
  CHECK(waitpid(child, &status, 0) == child && !status, "child: %d", status);
  CHECK(shared[8] == 99, "a child's store is not seen: the area is no longer shared");

  CHECK(differs(private_file, PAGE, 0) < 0, "unwritten page of a private file mapping");
  CHECK(differs(private_file + PAGE, PAGE, generation) < 0, "written page of a private file mapping");
  unsigned char byte = 0;
  CHECK(pread(file, &byte, 1, PAGE) == 1 && byte == pattern(PAGE, 0), "a private store reached the file");
  CHECK(differs(shared_file, PAGE, 0) < 0, "shared file mapping");
  shared_file[2 * PAGE]++;
  CHECK(pread(file, &byte, 1, 2 * PAGE) == 1 && byte == shared_file[2 * PAGE], "the mapping has left its file");
  arm();
}

int main(void) {
  static unsigned char bytes[4 * PAGE];
  fill(bytes, sizeof bytes, 0);
  file = open("shared.data", O_RDWR | O_CREAT | O_TRUNC, 0600);
  CHECK(write(file, bytes, sizeof bytes) == sizeof bytes, "%m");
  private_file = mmap(0, sizeof bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
  shared_file = mmap(0, sizeof bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  shared = mmap(0, AREA, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  view = mremap(shared, 0, AREA, MREMAP_MAYMOVE);
  CHECK(shared != MAP_FAILED && view != MAP_FAILED && view != shared, "%m");
  CHECK(private_file != MAP_FAILED && shared_file != MAP_FAILED, "%m");
  arm();
  return obey(check);
}
