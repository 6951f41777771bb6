// SPDX-License-Identifier: LGPL-2.1-only
// Descriptors of files: offsets, flags, sharing, close-on-exec, a deleted file, a device, a directory, and no others.
#include "subject.h"
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

static int plain, twin, other, append, closing, deleted, null, directory, output;
static char listing[4096];
static long offset, length;

// The numbers of the open descriptors, without the one that lists them.
static void list(char *to) {
  DIR *d = opendir("/proc/self/fd");
  CHECK(d, "%m");
  char open[256] = {0};
  for (struct dirent *e; (e = readdir(d));)
    if (e->d_name[0] != '.' && atoi(e->d_name) != dirfd(d)) open[atoi(e->d_name)] = 1;
  closedir(d);
  *to = 0;
  for (int i = 0; i < 256; i++)
    if (open[i]) to += sprintf(to, "%d ", i);
}

static int make(const char *name, int flags) {
  int fd = open(name, flags | O_CREAT, 0644);
  CHECK(fd >= 0, "%s: %m", name);
  return fd;
}

static void check(void) {
  char now[4096], text[64] = {0};
  list(now);
  CHECK(!strcmp(now, listing), "descriptors %s instead of %s", now, listing);

  CHECK(lseek(plain, 0, SEEK_CUR) == offset, "offset %ld instead of %ld", (long)lseek(plain, 0, SEEK_CUR), offset);
  CHECK((fcntl(plain, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK)) == O_RDWR, "flags %x", fcntl(plain, F_GETFL));
  CHECK(lseek(other, 0, SEEK_CUR) == 3, "the second opening has offset %ld", (long)lseek(other, 0, SEEK_CUR));
  CHECK(read(other, text, 4) == 4 && !memcmp(text, "3456", 4), "read %s", text);
  lseek(other, 3, SEEK_SET);
  lseek(plain, ++offset, SEEK_SET);
  CHECK(lseek(twin, 0, SEEK_CUR) == offset, "a duplicate no longer shares its offset");
  CHECK(lseek(other, 0, SEEK_CUR) == 3, "two openings share an offset");

  CHECK(fcntl(append, F_GETFL) & O_APPEND, "O_APPEND is lost");
  struct stat status;
  fstat(append, &status);      // other generations write to the same file
  CHECK(status.st_size >= length, "the file has shrunk to %ld bytes", (long)status.st_size);
  length = status.st_size + 1;
  CHECK(write(append, "x", 1) == 1, "%m");
  CHECK(lseek(append, 0, SEEK_CUR) == length, "appended at %ld instead of %ld", (long)lseek(append, 0, SEEK_CUR), length);

  CHECK(fcntl(closing, F_GETFD) == FD_CLOEXEC, "close-on-exec is lost");
  CHECK(fcntl(plain, F_GETFD) == 0, "close-on-exec came up");
  CHECK((fcntl(closing, F_GETFL) & O_ACCMODE) == O_RDONLY, "flags %x", fcntl(closing, F_GETFL));

  CHECK(lseek(deleted, 0, SEEK_CUR) == 5, "deleted file: offset");
  CHECK(pread(deleted, text, 16, 0) == 12 && !memcmp(text, "gone by name", 12), "deleted file: %s", text);
  CHECK(pwrite(deleted, "gone", 4, 0) == 4, "deleted file: %m");
  CHECK(access("deleted.data", F_OK) < 0, "the deleted file is back in its directory");

  CHECK(write(null, "x", 1) == 1 && read(null, text, 1) == 0, "/dev/null");
  fstat(null, &status);
  CHECK(S_ISCHR(status.st_mode), "/dev/null is a %o", status.st_mode);
  CHECK(!faccessat(directory, "plain.data", R_OK, 0), "directory: %m");
  struct stat first, second;
  CHECK(!fstat(1, &first) && !fstat(output, &second) && first.st_ino == second.st_ino && first.st_dev == second.st_dev,
        "the duplicate of standard output is another file");
}

int main(void) {
  plain = make("plain.data", O_RDWR | O_TRUNC);
  CHECK(write(plain, "0123456789abcdef", 16) == 16, "%m");
  offset = lseek(plain, 4, SEEK_SET);
  twin = dup(plain);
  other = open("plain.data", O_RDONLY);
  lseek(other, 3, SEEK_SET);
  append = make("append.data", O_WRONLY | O_APPEND | O_TRUNC);
  CHECK(write(append, "begin", 5) == 5, "%m");
  length = 5;
  closing = open("plain.data", O_RDONLY | O_CLOEXEC);
  deleted = make("deleted.data", O_RDWR | O_TRUNC);
  CHECK(write(deleted, "gone by name", 12) == 12, "%m");
  lseek(deleted, 5, SEEK_SET);
  unlink("deleted.data");
  null = open("/dev/null", O_RDWR);
  directory = open(".", O_RDONLY | O_DIRECTORY);
  output = fcntl(1, F_DUPFD, 40);
  list(listing);
  return obey(check);
}
