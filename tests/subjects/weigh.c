// SPDX-License-Identifier: LGPL-2.1-only
// What scripts/bench weighs: a program of MIB megabytes and THREADS threads that obeys lines.
//   weigh MIB THREADS [plain|huge]  fills its memory (4K pages; as the machine gives them; huge ones), starts its threads, says "ready"; then
//     fork       forks itself nine times and answers with the median, in microseconds
//     gap [P]    spins until the next line, writing to P percent of its pages a second, and answers with
//                the longest gap between two looks at the clock, in microseconds
//     step       answers "ok"
//     go         ends
//     touch      writes to each page, and answers "ok"
//     rate P MS  computes for MS milliseconds, writing to P percent of its pages a second (of 100,000 units, whatever these
//                take), and answers with the units that it has done
//   weigh items KIND N     has N of a kind (mappings, descriptors, threads; deleted: MiB in a file without a
//                name), says "ready" and obeys the same lines
//   weigh read FILE N      reads FILE into huge pages with N threads, in microseconds
//   weigh write FILE N F   writes N bytes into a new FILE, F: with fsync(2), in microseconds
//   weigh work             what slow supervisors slow down, four figures in microseconds
//   weigh peak WORDS..     executes a program and says on standard error how much memory was resident at most, in bytes
//   weigh unsynced WORDS.. executes a program whose fsync(2) and fdatasync(2) do nothing
#include "subject.h"
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <spawn.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

static unsigned char *memory;
static size_t size;

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static unsigned char *anonymous(size_t length, int advice) {
  unsigned char *p =
      mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(p != MAP_FAILED, "mmap: %m");
  madvise(p, length, advice);
  return p;
}

static int by_size(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x > y) - (x < y);
}

static int64_t forks(void) {
  int64_t took[9];
  for (int i = 0; i < 9; i++) {
    int64_t begin = now();
    pid_t child = fork();
    if (!child) _exit(0);
    took[i] = now() - begin;
    CHECK(child > 0, "fork: %m");
    waitpid(child, NULL, 0);
  }
  qsort(took, 9, sizeof *took, by_size);
  return took[4];
}

static uint64_t state = 88172645463325252u;

// Writes to a page, any of them.
static void dirty(void) {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  memory[state % (size >> 12) << 12]++;
}

static int64_t gap(double percent) {
  struct pollfd in = {.fd = 0, .events = POLLIN};
  double pages_a_nano = percent / 100 * (double)(size >> 12) / 1e9, due = 0;
  int64_t longest = 0, last = now(), looked = last;
  for (;;) {
    int64_t t = now();
    if (t - last > longest) longest = t - last;
    // A gap owes no pages: the rate is that of the running program.
    due += (double)(t - last > 100000 ? 100000 : t - last) * pages_a_nano;
    for (; due >= 1; due--) dirty();
    last = t;
    if (t - looked > 200000) {
      if (poll(&in, 1, 0) > 0) return longest;
      looked = t;
    }
  }
}

// A unit is always the same work, about 10 microseconds of it.
static int64_t rate(double percent, int64_t milliseconds) {
  double pages = percent / 100 * (double)(size >> 12) / 1e5, due = 0;
  int64_t units = 0, end = now() + milliseconds * 1000000;
  for (; now() < end; units++) {
    volatile double sum = 0;
    for (int i = 1; i < 8000; i++) sum += 1.0 / i;
    for (due += pages; due >= 1; due--) dirty();
  }
  return units;
}

static void *sleeper(void *ready) {
  pthread_barrier_wait(ready);
  for (;;) pause();
  return NULL;
}

static void start(int threads) {
  static pthread_barrier_t ready;
  pthread_barrier_init(&ready, NULL, (unsigned)threads);
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 64 << 10);
  for (int i = 1; i < threads; i++) {
    pthread_t thread;
    CHECK(!pthread_create(&thread, &small, sleeper, &ready), "pthread_create");
  }
  pthread_barrier_wait(&ready);
}

static void serve(void) {
  say("ready\n");
  char line[64];
  for (;;) {
    char answer[64];
    double percent = 0;
    long milliseconds = 0;
    hear(line, sizeof line);
    if (!strcmp(line, "go")) return;
    if (!strcmp(line, "fork")) {
      snprintf(answer, sizeof answer, "%.1f\n", (double)forks() / 1e3);
    } else if (!strncmp(line, "gap", 3)) {
      percent = atof(line + 3);
      say("spinning\n");
      snprintf(answer, sizeof answer, "%.1f\n", (double)gap(percent) / 1e3);
      hear(line, sizeof line);
    } else if (sscanf(line, "rate %lf %ld", &percent, &milliseconds) == 2) {
      snprintf(answer, sizeof answer, "%lld\n", (long long)rate(percent, milliseconds));
    } else {
      for (size_t at = 0; !strcmp(line, "touch") && at < size; at += 4096) memory[at]++;
      snprintf(answer, sizeof answer, "ok\n");
    }
    say(answer);
  }
}

static void have(const char *kind, int count) {
  if (!strcmp(kind, "mappings")) {
    // Each has other rights than those beside it, so the kernel does not join them.
    unsigned char *all = anonymous((size_t)count << 12, MADV_NOHUGEPAGE);
    fill(all, (size_t)count << 12, 1);
    for (int i = 0; i < count; i += 2) CHECK(!mprotect(all + ((size_t)i << 12), 4096, PROT_READ), "mprotect: %m");
  } else if (!strcmp(kind, "descriptors")) {
    struct rlimit limit;
    CHECK(!getrlimit(RLIMIT_NOFILE, &limit), "getrlimit: %m");
    limit.rlim_cur = limit.rlim_max;
    CHECK(!setrlimit(RLIMIT_NOFILE, &limit), "setrlimit: %m");
    for (int i = 0; i < count; i++) CHECK(open("/dev/null", O_RDONLY) >= 0, "open: %m");
  } else if (!strcmp(kind, "scattered")) {
    // So many MiB, of which every other page is zeros.
    unsigned char *all = anonymous((size_t)count << 20, MADV_NOHUGEPAGE);
    for (size_t at = 0; at < (size_t)count << 20; at += 4096) all[at] = at >> 12 & 1;
  } else if (!strcmp(kind, "deleted")) {
    static unsigned char piece[1 << 20];
    int file = open(".", O_TMPFILE | O_RDWR, 0600);
    for (int i = 0; i < count; i++) {
      fill(piece, sizeof piece, (unsigned)i);
      CHECK(write(file, piece, sizeof piece) == sizeof piece, "write: %m");
    }
  } else {
    start(count);
  }
}

struct part {
  int file;
  unsigned char *to;
  size_t from, length;
};

static void *read_part(void *given) {
  struct part *p = given;
  for (size_t done = 0; done < p->length;) {
    ssize_t got = pread(p->file, p->to + p->from + done, p->length - done, (off_t)(p->from + done));
    CHECK(got > 0, "read: %m");
    done += (size_t)got;
  }
  return NULL;
}

static int64_t read_file(const char *name, int threads) {
  struct part parts[64];
  pthread_t ids[64];
  int file = open(name, O_RDONLY);
  struct stat stat;
  CHECK(file >= 0 && !fstat(file, &stat) && threads <= 64, "%s: %m", name);
  size_t length = (size_t)stat.st_size, each = (length / (size_t)threads + 4095) & ~4095ul;
  int64_t begin = now();
  unsigned char *to = anonymous(length + (2 << 20), MADV_HUGEPAGE);
  for (int i = 0; i < threads; i++) {
    size_t from = each * (size_t)i;
    parts[i] = (struct part){file, to, from, from + each > length ? length - from : each};
    CHECK(!pthread_create(&ids[i], NULL, read_part, &parts[i]), "pthread_create");
  }
  for (int i = 0; i < threads; i++) pthread_join(ids[i], NULL);
  return now() - begin;
}

static int64_t write_file(const char *name, size_t length, int sync) {
  enum { PIECE = 4 << 20 };
  size_t room = length < (256 << 20) ? length : 256 << 20;
  memory = anonymous(room, MADV_NOHUGEPAGE);
  fill(memory, room, 1);
  int64_t begin = now();
  int file = open(name, O_WRONLY | O_CREAT | O_EXCL, 0600);
  CHECK(file >= 0, "%s: %m", name);
  for (size_t done = 0; done < length;) {
    size_t at = done % room, most = length - done < PIECE ? length - done : PIECE;
    ssize_t wrote = write(file, memory + at, most < room - at ? most : room - at);
    CHECK(wrote > 0, "write: %m");
    done += (size_t)wrote;
  }
  CHECK(!sync || !fsync(file), "fsync: %m");
  close(file);
  return now() - begin;
}

static int unsynced(char **words) {
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fsync, 1, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fdatasync, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {sizeof code / sizeof *code, code};
  CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl: %m");
  CHECK(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), "seccomp: %m");
  execv(words[0], words);
  CHECK(0, "%s: %m", words[0]);
  return 1;
}

// The peak of a process counts that of the one that made it, before it executes: which is small here.
static int peak(char **words) {
  pid_t child;
  int status;
  struct rusage usage;
  CHECK(!posix_spawn(&child, words[0], NULL, NULL, words, environ), "%s: %m", words[0]);
  CHECK(wait4(child, &status, 0, &usage) == child, "wait4: %m");
  fprintf(stderr, "\npeak %ld\n", usage.ru_maxrss << 10);
  return status != 0;
}

static void compute(void) {
  volatile double sum = 0;
  for (int i = 1; i < 30000000; i++) sum += 1.0 / i;
}

static void allocate(void) {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  for (int i = 0; i < 3000000; i++) {
    pthread_mutex_lock(&mutex);
    void *volatile p = malloc(64);
    free(p);
    pthread_mutex_unlock(&mutex);
  }
}

static void open_close(void) {
  for (int i = 0; i < 100000; i++) close(open("/dev/null", O_RDONLY));
}

static void spawn(void) {
  for (int i = 0; i < 200; i++) {
    char *args[] = {"true", NULL};
    pid_t child;
    CHECK(!posix_spawn(&child, "/bin/true", NULL, NULL, args, NULL), "posix_spawn");
    waitpid(child, NULL, 0);
  }
}

int main(int count, char **words) {
  if (count == 4 && !strcmp(words[1], "read")) {
    printf("%.1f\n", (double)read_file(words[2], atoi(words[3])) / 1e3);
  } else if (count == 5 && !strcmp(words[1], "write")) {
    printf("%.1f\n", (double)write_file(words[2], (size_t)atol(words[3]), atoi(words[4])) / 1e3);
  } else if (count > 2 && !strcmp(words[1], "peak")) {
    return peak(words + 2);
  } else if (count > 2 && !strcmp(words[1], "unsynced")) {
    return unsynced(words + 2);
  } else if (count == 4 && !strcmp(words[1], "items")) {
    have(words[2], atoi(words[3]));
    serve();
  } else if (count == 2 && !strcmp(words[1], "work")) {
    void (*const kinds[])(void) = {compute, allocate, open_close, spawn};
    for (int i = 0; i < 4; i++) {
      int64_t begin = now();
      kinds[i]();
      printf("%.1f ", (double)(now() - begin) / 1e3);
    }
    printf("\n");
  } else {
    CHECK(count == 3 || count == 4, "see the head of this file");
    size = (size_t)atol(words[1]) << 20;
    const char *pages = count > 3 ? words[3] : "small";
    int plain = !strcmp(pages, "plain"), huge = !strcmp(pages, "huge");
    start(atoi(words[2]));
    memory = anonymous(size, plain ? MADV_NORMAL : huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    fill(memory, size, 1);
    serve();
  }
}
