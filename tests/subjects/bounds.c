// SPDX-License-Identifier: LGPL-2.1-only
// Memory whose mappings change their bounds at each check: an arena in which ranges are written to, unmapped, mapped anew,
// protected, dropped and moved by chance, a heap and an array that grow and shrink. What each page has to hold is known.
// The argument is where chance begins.
#include "subject.h"
#include <sys/mman.h>
#include <sys/syscall.h>

enum { PAGE = 4096, PAGES = 24 << 8, HEAP = 6 << 8, ARRAY = 48 << 8, STEPS = 12, LONGEST = 4 << 8 };
enum { NONE_HERE, CLOSED, READ, OPEN };
static struct page { uint32_t content; unsigned char is; } arena_of[PAGES];
static uint32_t heap_of[HEAP], array_of[ARRAY], newest;
static unsigned char *arena, *heap, *array;
static size_t heap_has, array_has;
static uint64_t dice;

static size_t chance(size_t below) {
  dice = dice * 6364136223846793005u + 1442695040888963407u;
  return (dice >> 33) % below;
}

static void put(unsigned char *page, uint32_t content) {
  for (size_t i = 0; i < PAGE / 4; i++) ((uint32_t *)page)[i] = content;
}

static void is(const unsigned char *page, uint32_t content, const char *where) {
  for (size_t i = 0; i < PAGE / 4; i++)
    CHECK(((const uint32_t *)page)[i] == content, "%s %p has %u instead of %u", where, page + i * 4,
          ((const uint32_t *)page)[i], content);
}

static int opens(size_t page) {
  if (arena_of[page].is == NONE_HERE) return 0;
  CHECK(!mprotect(arena + page * PAGE, PAGE, PROT_READ | PROT_WRITE), "%m");
  arena_of[page].is = OPEN;
  return 1;
}

static void look(void) {
  static const int protections[] = {0, PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE};
  for (size_t i = 0; i < PAGES; i++) {
    if (arena_of[i].is == NONE_HERE) continue;
    if (arena_of[i].is == CLOSED) CHECK(!mprotect(arena + i * PAGE, PAGE, PROT_READ), "%m");
    is(arena + i * PAGE, arena_of[i].content, "arena");
    if (arena_of[i].is == CLOSED) CHECK(!mprotect(arena + i * PAGE, PAGE, protections[CLOSED]), "%m");
  }
  for (size_t i = 0; i < heap_has; i++) is(heap + i * PAGE, heap_of[i], "heap");
  for (size_t i = 0; i < array_has; i++) is(array + i * PAGE, array_of[i], "array");
}

static void map(size_t from, size_t to) {
  void *at = mmap(arena + from * PAGE, (to - from) * PAGE, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  CHECK(at == arena + from * PAGE, "%m");
  for (size_t i = from; i < to; i++) arena_of[i] = (struct page){0, OPEN};
}

static void change(void) {
  size_t from = chance(PAGES - LONGEST), to = from + 1 + chance(LONGEST), len = (to - from) * PAGE;
  unsigned char *at = arena + from * PAGE;
  switch (chance(8)) {
  case 0:
    CHECK(!munmap(at, len), "%m");
    for (size_t i = from; i < to; i++) arena_of[i] = (struct page){0, NONE_HERE};
    break;
  case 1: map(from, to); break;
  case 2:
  case 3:
    for (size_t i = from; i < to; i += 1 + chance(3))
      if (opens(i)) put(arena + i * PAGE, arena_of[i].content = ++newest);
    break;
  case 4:
    for (size_t i = from; i < to; i++) opens(i);
    for (size_t i = from; i < to; i++)
      if (arena_of[i].is == OPEN) CHECK(!madvise(arena + i * PAGE, PAGE, MADV_DONTNEED), "%m");
      else continue;
    for (size_t i = from; i < to; i++)
      if (arena_of[i].is == OPEN) arena_of[i].content = 0;
    break;
  case 5:
  case 6: {
    int is = 1 + chance(3);
    for (size_t i = from; i < to; i++) {
      if (arena_of[i].is == NONE_HERE) continue;
      int protection = is == CLOSED ? PROT_NONE : is == READ ? PROT_READ : PROT_READ | PROT_WRITE;
      CHECK(!mprotect(arena + i * PAGE, PAGE, protection), "%m");
      arena_of[i].is = is;
    }
    break;
  }
  default: {
    size_t other = chance(PAGES - LONGEST);
    // One mapping alone can be moved, and not onto itself.
    if (other < to && from < other + (to - from)) break;
    map(from, to);
    for (size_t i = from; i < to; i += 2) put(arena + i * PAGE, arena_of[i].content = ++newest);
    CHECK(mremap(at, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, arena + other * PAGE) != MAP_FAILED, "%m");
    memcpy(&arena_of[other], &arena_of[from], (to - from) * sizeof *arena_of);
    for (size_t i = from; i < to; i++) arena_of[i] = (struct page){0, NONE_HERE};
  }
  }
}

// Grows or shrinks: what is new is zero, and some of it is written to.
static size_t resized(size_t has, size_t most, uint32_t *of) {
  size_t now = most / 4 + chance(most * 3 / 4);
  for (size_t i = has; i < now; i++) of[i] = 0;
  return now;
}

static void resize(void) {
  size_t now = resized(heap_has, HEAP, heap_of);
  CHECK((unsigned char *)syscall(SYS_brk, heap + now * PAGE) == heap + now * PAGE, "brk");
  for (size_t i = heap_has; i < now; i += 1 + chance(2)) put(heap + i * PAGE, heap_of[i] = ++newest);
  heap_has = now;
  now = resized(array_has, ARRAY, array_of);
  array = mremap(array, array_has * PAGE, now * PAGE, MREMAP_MAYMOVE);
  CHECK(array != MAP_FAILED, "%m");
  for (size_t i = array_has; i < now; i += 1 + chance(2)) put(array + i * PAGE, array_of[i] = ++newest);
  array_has = now;
  for (size_t i = 0; i < 500; i++) {
    size_t page = chance(array_has);
    put(array + page * PAGE, array_of[page] = ++newest);
  }
}

static void check(void) {
  look();
  for (size_t i = 0; i < STEPS; i++) change();
  resize();
  look();
}

int main(int argc, char **argv) {
  dice = argc > 1 ? strtoull(argv[1], 0, 10) : 1;
  heap = (unsigned char *)syscall(SYS_brk, 0);
  heap = (unsigned char *)(((uintptr_t)heap + PAGE - 1) / PAGE * PAGE);
  arena = mmap(0, PAGES * (size_t)PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  array_has = ARRAY * 3 / 4;
  array = mmap(0, array_has * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(arena != MAP_FAILED && array != MAP_FAILED, "%m");
  map(0, PAGES);
  for (size_t i = 0; i < PAGES; i++) put(arena + i * PAGE, arena_of[i].content = ++newest);
  for (size_t i = 0; i < array_has; i++) put(array + i * PAGE, array_of[i] = ++newest);
  resize();
  return obey(check);
}
