// SPDX-License-Identifier: LGPL-2.1-only
// pool SHAPE WORKERS MIB: so many processes that have so much memory in common since they were forked. Each changes some
// pages of it, and knows what it has to find in all of them. SHAPE tells who has the memory:
//   flat      the root, and its children, the workers
//   huge      the same, in huge pages
//   below     a child of the root, and its children, the workers; the root has none of it
//   dead      the same, and that child has ended: the workers are the root's by PR_SET_CHILD_SUBREAPER
//   changed   the root, and workers whose parent has changed all of it since it made them
//   moving    the root changes a half of it when half of its workers are made, and a quarter when all are
//   siblings  the first two workers: the root has given it up before it made the others
#include "subject.h"
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { WORDS = 512, OWN = 8 };
static uint64_t *data;
static size_t pages;
static unsigned *generations;
static int gate[2], ready[2];

static uint64_t word(size_t page, unsigned generation, size_t at) {
  return (page + 1) * 0x9e3779b97f4a7c15u ^ (uint64_t)generation << 40 ^ at;
}

static void write_page(size_t page, unsigned generation) {
  uint64_t *p = data + page * WORDS;
  for (size_t i = 0; i < WORDS; i++) p[i] = word(page, generation, i);
  generations[page] = generation;
}

static void write_pages(size_t first, size_t end, unsigned generation) {
  for (size_t page = first; page < end; page++) write_page(page, generation);
}

static void allocate(int huge) {
  const size_t two = 2 << 20;
  char *p = mmap(0, pages * 4096 + two, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(p != MAP_FAILED, "%m");
  data = (uint64_t *)(((uintptr_t)p + two - 1) & ~(two - 1));
  if (huge) madvise(data, pages * 4096, MADV_HUGEPAGE);
  generations = calloc(pages, sizeof *generations);
  write_pages(0, pages, 1);
}

static void look(void) {
  for (size_t page = 0; data && page < pages; page++) {
    uint64_t *p = data + page * WORDS;
    for (size_t i = page % 8; i < WORDS; i += 64)
      CHECK(p[i] == word(page, generations[page], i), "word %zu of page %zu of %d", i, page, getpid());
  }
}

static void arrive(void) { CHECK(write(ready[1], "r", 1) == 1, "%m"); }

static void await_gate(void) {
  char byte;
  CHECK(read(gate[0], &byte, 1) == 0, "the gate: %m");
}

static pid_t worker(unsigned number) {
  pid_t child = fork();
  CHECK(child >= 0, "%m");
  if (child) return child;
  close(gate[1]);
  for (size_t i = 0; data && i < OWN; i++) write_page((number * 7 + i * 1021) % pages, 100 + number);
  arrive();
  await_gate();
  look();
  _exit(0);
}

static void bury(int count) {
  for (int status; count-- > 0;) {
    pid_t child = wait(&status);
    CHECK(child > 0 && status == 0, "%d ended with %x", child, status);
  }
}

static void make_below(const char *shape, int workers) {
  int dies = !strcmp(shape, "dead"), changes = !strcmp(shape, "changed");
  pid_t middle = fork();
  CHECK(middle >= 0, "%m");
  if (middle) {
    if (dies) CHECK(waitpid(middle, 0, 0) == middle, "%m");
    return;
  }
  if (!changes) allocate(0);
  for (int i = 0; i < workers; i++) worker((unsigned)i);
  if (dies) _exit(0);
  close(gate[1]);
  if (changes) write_pages(0, pages, 2);
  arrive();
  await_gate();
  look();
  bury(workers);
  _exit(0);
}

int main(int argc, char **argv) {
  CHECK(argc == 4, "usage: pool SHAPE WORKERS MIB");
  const char *shape = argv[1];
  int workers = atoi(argv[2]), children = workers;
  pages = (size_t)atoi(argv[3]) * 256;
  CHECK(!pipe(gate) && !pipe(ready), "%m");
  int below = !strcmp(shape, "below"), dead = !strcmp(shape, "dead"), changed = !strcmp(shape, "changed");
  if (!below && !dead) allocate(!strcmp(shape, "huge"));
  if (dead) CHECK(!prctl(PR_SET_CHILD_SUBREAPER, 1), "%m");
  int arrivals = workers + (below || changed);
  if (below || dead || changed) {
    make_below(shape, workers);
    children = dead ? workers : 1;
  } else {
    for (int i = 0; i < workers; i++) {
      if (i == workers / 2 && !strcmp(shape, "moving")) write_pages(0, pages / 2, 2);
      if (i == 2 && !strcmp(shape, "siblings")) {
        CHECK(!munmap(data, pages * 4096), "%m");
        data = 0;
      }
      worker((unsigned)i);
    }
    if (!strcmp(shape, "moving")) write_pages(pages / 2, pages / 4 * 3, 3);
  }
  char byte;
  for (int i = 0; i < arrivals; i++) CHECK(read(ready[0], &byte, 1) == 1, "%m");
  say("ready\n");
  char order[16];
  hear(order, sizeof order);
  CHECK(!strcmp(order, "go"), "no order");
  close(gate[1]);
  look();
  bury(children);
  return 0;
}
