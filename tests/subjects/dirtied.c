// SPDX-License-Identifier: LGPL-2.1-only
// Threads that change memory in every way there is, all the time, each in regions of its own. Each page has a version, and
// its content follows from that and from where it belongs: a page that a checkpoint has from another moment than the
// versions is seen. "check" has each thread compare every byte. Arguments: a seed; "pieces" to move also pieces of mappings,
// which makes mappings of pieces; "loose" to have no memory that is locked or has a key.
#include "subject.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>

enum { PAGE = 4096, WORDS = PAGE / 8, THREADS = 3, REGIONS = 7, PAGES = 512, DEEP = 40 };
enum { ZERO = 0, ANY = 1u << 31 };
enum kind { PLAIN, HUGE_PAGES, SHARED, OF_FILE, KEYED, LOCKED, GROWN };

struct region {
  enum kind kind;
  char *at;
  int prot;
  // 0: zeros, of a file its content; ANY: zeros may be there in its stead (MADV_FREE).
  uint32_t version[PAGES];
};

struct actor {
  uint64_t random, id;
  struct region regions[REGIONS];
  int pair[2], memory, file;
  char *room;
  pthread_mutex_t gate;
  uint64_t steps;
} __attribute__((aligned(64)));

static struct actor *actors[THREADS];
static volatile uint32_t wanted, done[THREADS];
static int key = -1, pieces, loose;

static uint64_t mix(uint64_t x) {
  x = (x ^ x >> 31) * 0x9e3779b97f4a7c15u;
  return (x ^ x >> 29) * 0xbf58476d1ce4e5b9u;
}

static uint64_t dice(struct actor *a, uint64_t below) { return (a->random = mix(a->random + 1)) % below; }

static uint64_t word_of(struct actor *a, int region, int page, uint32_t version, int word) {
  return mix(a->id << 56 ^ (uint64_t)region << 48 ^ (uint64_t)page << 32 ^ version) + (uint64_t)word * 3;
}

static void make(struct actor *a, int region, int page, uint32_t version, char *to) {
  uint64_t *words = (uint64_t *)to;
  for (int i = 0; i < WORDS; i++) words[i] = version ? word_of(a, region, page, version, i) : 0;
}

// What a page of the file has, which is what a private mapping of it has without a version.
static void make_file(char *to, int page) { memset(to, page % 7 ? 0x40 + page % 64 : 0, PAGE); }

static void compare(struct actor *a, int number, int page) {
  struct region *r = &a->regions[number];
  char expected[PAGE], *seen = r->at + (size_t)page * PAGE;
  uint32_t version = r->version[page] & ~ANY;
  if (r->kind == OF_FILE && !version) make_file(expected, page);
  else make(a, number, page, version, expected);
  if (r->version[page] & ANY && not_zero((unsigned char *)seen, PAGE) < 0) return;
  for (int i = 0; i < PAGE; i++)
    CHECK(seen[i] == expected[i], "thread %ld, region %d (kind %d), page %d at %p, version %x: byte %d is %x, not %x",
          (long)a->id, number, r->kind, page, seen, r->version[page], i, seen[i] & 255, expected[i] & 255);
}

static void compare_all(struct actor *a) {
  for (int region = 0; region < REGIONS; region++)
    for (int page = 0; page < PAGES; page++) compare(a, region, page);
}

static int deep(struct actor *a, int left) {
  volatile uint64_t words[WORDS];
  uint64_t salt = dice(a, 1 << 30);
  for (int i = 0; i < WORDS; i++) words[i] = mix(salt + i);
  if (left) CHECK(deep(a, left - 1) == left - 1, "the stack");
  for (int i = 0; i < WORDS; i++) CHECK(words[i] == mix(salt + i), "the stack, %d deep, word %d", left, i);
  return left;
}

static void protect(struct region *r, int prot) {
  size_t half = (size_t)PAGES / 2 * PAGE;
  if (r->kind == KEYED) CHECK(!pkey_mprotect(r->at, half, prot, key), "%m");
  else CHECK(!mprotect(r->at, half, prot), "%m");
}

static void *map_anew(struct actor *a, struct region *r, void *at) {
  int flags = (r->kind == SHARED ? MAP_SHARED : MAP_PRIVATE) | (at ? MAP_FIXED : 0);
  int fd = r->kind == OF_FILE ? a->file : -1;
  if (fd < 0) flags |= MAP_ANONYMOUS;
  char *p = mmap(at, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
  CHECK(p != MAP_FAILED, "%m");
  if (r->kind == HUGE_PAGES) madvise(p, (size_t)PAGES * PAGE, MADV_HUGEPAGE);
  if (r->kind == LOCKED && !loose) (void)mlock(p, (size_t)PAGES / 8 * PAGE);
  if (r->kind == KEYED && key >= 0) CHECK(!pkey_mprotect(p, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, key), "%m");
  memset(r->version, 0, sizeof r->version);
  return p;
}

static void *aligned(size_t length) {
  size_t huge = 2 << 20;
  char *p = mmap(0, length + huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(p != MAP_FAILED, "%m");
  char *at = (char *)(((uintptr_t)p + huge - 1) / huge * huge);
  CHECK((at == p || !munmap(p, at - p)) && !munmap(at + length, p + huge - at), "%m");
  return at;
}

// Its place stays taken meanwhile, as other threads map memory, too.
static void move(char *from, size_t length, char *to) {
  int flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
  CHECK(mremap(from, length, length, flags, to) == to, "mremap: %m");
}

static void write_page(struct actor *a, int number, int page) {
  struct region *r = &a->regions[number];
  char *to = r->at + (size_t)page * PAGE;
  uint32_t version = dice(a, 9) ? 1 + (uint32_t)dice(a, ANY - 1) : ZERO;
  if (r->kind == OF_FILE && !version) version = 1;
  make(a, number, page, version, a->room);
  switch (dice(a, 6)) {
  case 0:
    CHECK(pwrite(a->memory, a->room, PAGE, 0) == PAGE && pread(a->memory, to, PAGE, 0) == PAGE, "read: %m");
    break;
  case 1:
    CHECK(send(a->pair[0], a->room, PAGE, 0) == PAGE && recv(a->pair[1], to, PAGE, MSG_WAITALL) == PAGE, "recv: %m");
    break;
  case 2: {
    struct iovec from = {a->room, PAGE}, into = {to, PAGE};
    if (process_vm_writev(getpid(), &from, 1, &into, 1, 0) != PAGE) memcpy(to, a->room, PAGE);
    break;
  }
  default:
    memcpy(to, a->room, PAGE);
  }
  r->version[page] = version;
}

static void step(struct actor *a) {
  int number = (int)dice(a, REGIONS), page = (int)dice(a, PAGES);
  struct region *r = &a->regions[number];
  size_t length = (size_t)PAGES * PAGE;
  int count = 1 + (int)dice(a, 20);
  if (page + count > PAGES) count = PAGES - page;
  char *at = r->at + (size_t)page * PAGE;
  a->steps++;
  switch (dice(a, 100)) {
  case 0: // Somewhere else.
    if (r->kind == SHARED || r->kind == GROWN || r->kind == LOCKED) break;
    char *to = dice(a, 2) ? aligned(length) : 0;
    r->at = mremap(r->at, length, length, to ? MREMAP_MAYMOVE | MREMAP_FIXED : MREMAP_MAYMOVE, to);
    CHECK(r->at != MAP_FAILED, "mremap: %m");
    break;
  case 1: { // Two change places: each is where other content was.
    struct region *other = &a->regions[HUGE_PAGES];
    struct region *one = &a->regions[PLAIN];
    char *between = aligned(length), *p = one->at, *q = other->at;
    move(p, length, between), move(q, length, p);
    CHECK(mremap(between, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, q) == q, "mremap: %m");
    one->at = q, other->at = p;
    break;
  }
  case 2: // A part moves away and comes back, into the middle of what stayed.
    if (r->kind == PLAIN && pieces) {
      char *away = aligned(length);
      size_t part = (size_t)count * PAGE;
      move(at, part, away);
      ((volatile char *)away)[0] = away[0];
      CHECK(mremap(away, part, part, MREMAP_MAYMOVE | MREMAP_FIXED, at) == at, "mremap: %m");
      if (part < length) CHECK(!munmap(away + part, length - part), "%m");
    }
    break;
  case 3 ... 5:
    if (r->kind == LOCKED) break;
    CHECK(!madvise(at, (size_t)count * PAGE, MADV_DONTNEED), "%m");
    if (r->kind != SHARED) memset(&r->version[page], 0, count * sizeof *r->version);
    break;
  case 6:
    if (r->kind == SHARED || r->kind == OF_FILE || r->kind == LOCKED) break;
    CHECK(!madvise(at, (size_t)count * PAGE, MADV_FREE), "%m");
    for (int i = 0; i < count; i++) r->version[page + i] |= ANY;
    break;
  case 7:
    protect(r, dice(a, 2) ? PROT_READ : PROT_NONE);
    if (dice(a, 2)) sched_yield();
    protect(r, PROT_READ | PROT_WRITE);
    break;
  case 8: // New memory where the old was.
    if (r->kind != GROWN) r->at = map_anew(a, r, r->at);
    break;
  case 9:
    if (r->kind == GROWN || r->kind == SHARED) break;
    CHECK(!munmap(r->at, length), "%m");
    r->at = map_anew(a, r, r->kind == HUGE_PAGES ? aligned(length) : 0);
    break;
  case 10: // A child writes to its copy.
    if (dice(a, 4)) break;
    pid_t child = fork();
    if (!child) {
      if (r->kind != SHARED) memset(at, 0x55, (size_t)count * PAGE);
      _exit(0);
    }
    CHECK(child > 0 && waitpid(child, 0, 0) == child, "%m");
    break;
  case 11 ... 12:
    deep(a, (int)dice(a, DEEP));
    break;
  case 13: // All of it.
    for (int i = 0; i < PAGES; i++) write_page(a, number, i);
    break;
  case 14:
    madvise(r->at, length, r->kind == HUGE_PAGES ? 25 /* MADV_COLLAPSE */ : MADV_WILLNEED);
    break;
  case 15: // Pages of zeros that are only read.
    for (int i = 0; i < count; i++) compare(a, number, page + i);
    break;
  case 16: // One byte of a page, and back.
    if (r->version[page] & ANY) break;
    at[100] ^= 1;
    sched_yield();
    at[100] ^= 1;
    break;
  case 17: {
    char *some = malloc(300000 + dice(a, 900000));
    CHECK(some, "%m");
    memset(some, 7, 300000);
    free(some);
    break;
  }
  case 18 ... 40:
    for (int i = 0; i < count; i++) write_page(a, number, page + i);
    break;
  default:
    write_page(a, number, page);
  }
}

static void *act(void *number) {
  long me = (long)number;
  struct actor *a = actors[me];
  for (uint64_t n = 0;; n++) {
    pthread_mutex_lock(&a->gate);
    step(a);
    pthread_mutex_unlock(&a->gate);
    uint32_t asked = __atomic_load_n(&wanted, __ATOMIC_ACQUIRE);
    if (done[me] != asked) {
      compare_all(a);
      __atomic_store_n(&done[me], asked, __ATOMIC_RELEASE);
    }
    if (n % 64 == 0) usleep(2000);
  }
  return 0;
}

static void check(void) {
  uint32_t next = wanted + 1;
  __atomic_store_n(&wanted, next, __ATOMIC_RELEASE);
  for (int i = 0; i < THREADS; i++)
    while (__atomic_load_n(&done[i], __ATOMIC_ACQUIRE) != next) usleep(500);
}

int main(int argc, char **argv) {
  uint64_t seed = argc > 1 ? strtoull(argv[1], 0, 10) : 1;
  size_t length = (size_t)PAGES * PAGE;
  for (int i = 2; i < argc; i++) pieces |= !strcmp(argv[i], "pieces"), loose |= !strcmp(argv[i], "loose");
  if (!loose) key = pkey_alloc(0, 0);
  for (long me = 0; me < THREADS; me++) {
    struct actor *a = actors[me] = aligned_alloc(PAGE, (sizeof *a + PAGE - 1) / PAGE * PAGE);
    memset(a, 0, sizeof *a);
    a->random = mix(seed * 31 + me), a->id = me + 1;
    a->room = aligned_alloc(PAGE, PAGE);
    CHECK(!pthread_mutex_init(&a->gate, 0), "%m");
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, a->pair), "%m");
    CHECK((a->memory = memfd_create("a", 0)) >= 0 && (a->file = memfd_create("b", 0)) >= 0, "%m");
    for (int page = 0; page < PAGES; page++) {
      make_file(a->room, page);
      CHECK(pwrite(a->file, a->room, PAGE, (off_t)page * PAGE) == PAGE, "%m");
    }
    for (int i = 0; i < REGIONS; i++) {
      struct region *r = &a->regions[i];
      r->kind = i == KEYED && key < 0 ? PLAIN : i;
      if (r->kind == GROWN) {
        CHECK((r->at = sbrk(length + PAGE)) != (void *)-1, "%m");
        r->at = (char *)(((uintptr_t)r->at + PAGE - 1) / PAGE * PAGE);
        memset(r->at, 0, length);
      } else {
        r->at = map_anew(a, r, r->kind == HUGE_PAGES ? aligned(length) : 0);
      }
      for (int page = 0; page < PAGES; page += 1 + (int)dice(a, 3)) write_page(a, i, page);
    }
  }
  for (long me = 0; me < THREADS; me++) {
    pthread_t thread;
    CHECK(!pthread_create(&thread, 0, act, (void *)me), "%m");
  }
  return obey(check);
}
