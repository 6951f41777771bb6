// SPDX-License-Identifier: LGPL-2.1-only
// lazykin MIB WAY: makes kin while its memory is not there yet. They write what becomes of them to files in its directory:
// "born", "done", and "bad" when they read what is not theirs.
#include "subject.h"
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { PAGE = 4096, WORDS = PAGE / 8, MANY = 100 };
static uint64_t *memory;
static size_t pages;
static const char *way;

static uint64_t word(size_t page) { return (page + 1) * 0x9E3779B97F4A7C15ull; }

static void note(const char *name, size_t number) {
  char text[32];
  int file = open(".new", O_WRONLY | O_CREAT | O_TRUNC, 0600), length = snprintf(text, sizeof text, "%zu\n", number);
  if (file < 0 || write(file, text, length) != length || rename(".new", name)) _exit(99);
  close(file);
}

// From the end that comes last.
static void looks(int is_empty) {
  note("born", getpid());
  for (size_t i = 0; i < pages; i++)
    if (memory[i * WORDS] != (is_empty ? 0 : word(i))) note("bad", i), _exit(1);
  note("done", getpid());
  _exit(0);
}

static void one(int is_empty) {
  pid_t child = fork();
  CHECK(child >= 0, "fork: %m");
  if (child) {
    waitpid(child, 0, 0);
    return;
  }
  if (!fork()) looks(is_empty);
  _exit(0);
}

static void many(void) {
  pid_t children[MANY];
  int fds[2];
  char byte;
  CHECK(!pipe(fds), "pipe: %m");
  for (int i = 0; i < MANY; i++) {
    CHECK((children[i] = fork()) >= 0, "fork: %m");
    if (!children[i]) {
      // A child that nobody follows, and that misses nothing, is not ended with the program.
      CHECK(!prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl: %m");
      size_t page = pages / MANY * i;
      if (memory[page * WORDS] != word(page)) _exit(1);
      if (write(fds[1], "", 1) != 1) _exit(2);
      pause();
    }
  }
  for (int i = 0; i < MANY; i++) CHECK(read(fds[0], &byte, 1) == 1, "read: %m");
  for (int i = 0; i < MANY; i++) CHECK(!kill(children[i], SIGKILL) && waitpid(children[i], 0, 0) == children[i], "%m");
}


static void check(void) {
  if (!strcmp(way, "orphan")) one(0);
  if (!strcmp(way, "wiped")) {
    CHECK(!madvise(memory, pages * PAGE, MADV_WIPEONFORK), "madvise: %m");
    one(1);
    CHECK(!madvise(memory, pages * PAGE, MADV_KEEPONFORK), "madvise: %m");
  }
  if (!strcmp(way, "sibling") && !syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0)) looks(0);
  if (!strcmp(way, "many")) many();
  if (!strcmp(way, "other")) {
    pid_t child = fork();
    CHECK(child >= 0, "fork: %m");
    if (!child) execl("/bin/sh", "sh", "-c", "echo $$ >.new; mv .new born; exec sleep 1000 >.out 2>&1", (char *)0), _exit(127);
  }
  // Waits for what is brought last.
  for (size_t i = 0; i < pages; i++)
    CHECK(memory[i * WORDS] == word(i), "page %zu", i);
}

int main(int argc, char **argv) {
  CHECK(argc == 3, "lazykin MIB WAY");
  pages = (size_t)atoi(argv[1]) * 256, way = argv[2];
  memory = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED, "mmap: %m");
  for (size_t i = 0; i < pages; i++) memory[i * WORDS] = word(i);
  return obey(check);
}
