// SPDX-License-Identifier: LGPL-2.1-only
// Files without a name: memfds and deleted files, each one file however it is shown, with size, holes, times,
// mode, seals; descriptions with access modes and offsets of their own.
#include "subject.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define SIZE (1l << 20)
#define FAR (3l << 30)

static int part, twin, reader, sealed, script, gone, again, sparse, dated, locked, linked, late;
static unsigned char *window, *shown, *frozen;
static unsigned generation;
static const struct timespec times[2] = {{1000000000, 123456789}, {1100000000, 987654321}};

static int opened(int fd, int flags) {
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  int other = open(path, flags);
  CHECK(other >= 0, "%m");
  return other;
}

static void same(int a, int b, const char *what) {
  struct stat one, two;
  CHECK(!fstat(a, &one) && !fstat(b, &two), "%m");
  CHECK(one.st_ino == two.st_ino && one.st_dev == two.st_dev, "%s: two files now", what);
}

static long size(int fd) {
  struct stat status;
  CHECK(!fstat(fd, &status), "%m");
  return status.st_size;
}

static void check(void) {
  struct stat status;
  char byte, text[64] = {0};
  generation++;

  CHECK(size(part) == SIZE, "%ld", size(part));
  for (long at = 0; at < SIZE; at += 4096 - 1)
    if (at < 65536 || at >= 65536 + 8192) CHECK(pread(part, &byte, 1, at) == 1 && byte == 'A', "%c at %ld", byte, at);
  window[5] = (unsigned char)generation;
  CHECK(pread(twin, &byte, 1, 65536 + 5) == 1 && byte == (char)generation, "the mapping shows another file");
  same(part, twin, "memfd");
  same(part, reader, "memfd");
  CHECK(lseek(part, 0, SEEK_CUR) == 7 && lseek(twin, 0, SEEK_CUR) == 9, "offsets");
  CHECK((fcntl(part, F_GETFL) & O_ACCMODE) == O_RDWR && (fcntl(reader, F_GETFL) & O_ACCMODE) == O_RDONLY, "modes");
  CHECK(write(reader, "x", 1) < 0 && errno == EBADF, "a memfd opened for reading is written");

  const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
  CHECK(fcntl(sealed, F_GET_SEALS) == seals, "seals %x", fcntl(sealed, F_GET_SEALS));
  CHECK(pread(sealed, text, 6, 0) == 6 && !memcmp(text, "sealed", 6), "%s", text);
  CHECK(!memcmp(frozen, "sealed", 6), "the mapping of a sealed memfd");
  CHECK(write(sealed, "x", 1) < 0 && errno == EPERM, "a sealed memfd is written");

  pid_t child = fork();
  if (!child) {
    char *args[] = {"true", 0};
    fexecve(script, args, environ);
    _exit(99);
  }
  int state;
  CHECK(waitpid(child, &state, 0) == child && WIFEXITED(state), "%m");
  CHECK(WEXITSTATUS(state) == 0, "a memfd cannot be executed: %d", WEXITSTATUS(state));
  char name[64], link[64] = {0};
  snprintf(name, sizeof name, "/proc/self/fd/%d", script);
  CHECK(readlink(name, link, sizeof link - 1) > 0 && strstr(link, "memfd:a program"), "named %s", link);

  same(gone, again, "deleted file");
  shown[0] = (unsigned char)('a' + generation % 26);
  CHECK(pread(again, text, 5, 0) == 5 && text[0] == (char)shown[0] && !memcmp(text + 1, "ello", 4), "%s", text);
  CHECK(fcntl(again, F_GETFL) & O_APPEND, "flags");

  CHECK(size(sparse) == FAR + 3, "%ld", size(sparse));
  CHECK(!fstat(sparse, &status) && status.st_blocks < 1000, "a sparse file has %ld blocks", (long)status.st_blocks);
  CHECK(pread(sparse, text, 3, FAR) == 3 && !memcmp(text, "end", 3), "%s", text);

  CHECK(!fstat(dated, &status), "%m");
  CHECK(status.st_mtim.tv_sec == times[1].tv_sec && status.st_mtim.tv_nsec == times[1].tv_nsec, "modified %ld", (long)status.st_mtime);
  CHECK(status.st_atim.tv_sec == times[0].tv_sec, "accessed %ld", (long)status.st_atime);
  CHECK((status.st_mode & 07777) == 0640, "mode %o", status.st_mode);

  CHECK(!fstat(locked, &status) && (status.st_mode & 07777) == 0400, "mode %o", status.st_mode);
  CHECK(pwrite(locked, "w", 1, 0) == 1, "%m");

  CHECK(pwrite(linked, "x", 1, generation) == 1, "%m");
  int named = open("linked.data", O_RDONLY);
  CHECK(named >= 0, "%m");
  same(named, linked, "a file that got its name later");
  close(named);

  CHECK(pwrite(late, "x", 1, generation) == 1, "%m");
  named = open("late.data", O_RDONLY);
  CHECK(named >= 0, "%m");
  same(named, late, "an O_TMPFILE that got a name");
  close(named);
}

int main(void) {
  unsigned char *all;
  part = memfd_create("part", 0);
  CHECK(part >= 0 && !ftruncate(part, SIZE), "%m");
  all = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, part, 0);
  memset(all, 'A', SIZE);
  munmap(all, SIZE);
  window = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, part, 65536);
  twin = opened(part, O_RDWR), reader = opened(part, O_RDONLY);
  lseek(part, 7, SEEK_SET), lseek(twin, 9, SEEK_SET);

  sealed = memfd_create("sealed", MFD_ALLOW_SEALING);
  CHECK(write(sealed, "sealed", 6) == 6, "%m");
  CHECK(!fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL), "%m");
  int shower = opened(sealed, O_RDONLY);
  frozen = mmap(0, 4096, PROT_READ, MAP_SHARED, shower, 0);
  CHECK(frozen != MAP_FAILED, "%m");
  close(shower);

  script = memfd_create("a program", 0);
  int from = open("/bin/true", O_RDONLY);
  char buffer[65536];
  for (ssize_t n; (n = read(from, buffer, sizeof buffer)) > 0;) CHECK(write(script, buffer, n) == n, "%m");
  close(from);
  fchmod(script, 0755);

  gone = open("gone.data", O_RDWR | O_CREAT | O_TRUNC, 0644);
  again = open("gone.data", O_RDWR | O_APPEND);
  CHECK(write(gone, "hello", 5) == 5, "%m");
  shown = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, gone, 0);
  unlink("gone.data");

  sparse = open("sparse.data", O_RDWR | O_CREAT | O_TRUNC, 0644);
  CHECK(pwrite(sparse, "end", 3, FAR) == 3, "%m");
  unlink("sparse.data");

  dated = open("dated.data", O_RDWR | O_CREAT | O_TRUNC, 0644);
  CHECK(write(dated, "x", 1) == 1 && !fchmod(dated, 0640), "%m");
  unlink("dated.data");
  futimens(dated, times);

  locked = open("locked.data", O_WRONLY | O_CREAT | O_TRUNC, 0600);
  fchmod(locked, 0400);
  unlink("locked.data");

  // A name that was there first, another that stays.
  unlink("linked.data");
  linked = open("first.data", O_RDWR | O_CREAT | O_TRUNC, 0644);
  CHECK(!link("first.data", "linked.data") && !unlink("first.data"), "%m");

  char link[64];
  unlink("late.data");
  late = open(".", O_RDWR | O_TMPFILE, 0644);
  CHECK(late >= 0, "%m");
  snprintf(link, sizeof link, "/proc/self/fd/%d", late);
  CHECK(!linkat(AT_FDCWD, link, AT_FDCWD, "late.data", AT_SYMLINK_FOLLOW), "%m");
  return obey(check);
}
