// SPDX-License-Identifier: LGPL-2.1-only
// What scripts/bench weighs: a program of MIB megabytes and THREADS threads that obeys lines.
//   weigh MIB THREADS [plain|huge]  fills its memory (4K pages; as the machine gives them; huge ones), starts its threads, says "ready"; then
//     fork       forks itself nine times and answers with the median, in microseconds
//     gap [P]    spins until the next line, writing to P percent of its pages a second, and answers with
//                the longest gap between two looks at the clock, in microseconds
//     step       answers "ok"
//   weigh read FILE N      reads FILE into huge pages with N threads, in microseconds
//   weigh work             what slow supervisors slow down, four figures in microseconds
#include "subject.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
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

static int64_t gap(double percent) {
  struct pollfd in = {.fd = 0, .events = POLLIN};
  double pages_a_nano = percent / 100 * (double)(size >> 12) / 1e9, due = 0;
  uint64_t random = 88172645463325252u;
  int64_t longest = 0, last = now(), looked = last;
  for (;;) {
    int64_t t = now();
    if (t - last > longest) longest = t - last;
    // A gap owes no pages: the rate is that of the running program.
    due += (double)(t - last > 100000 ? 100000 : t - last) * pages_a_nano;
    for (; due >= 1; due--) {
      random ^= random << 13, random ^= random >> 7, random ^= random << 17;
      memory[random % (size >> 12) << 12]++;
    }
    last = t;
    if (t - looked > 200000) {
      if (poll(&in, 1, 0) > 0) return longest;
      last = looked = now();
    }
  }
}

static void *sleeper(void *ready) {
  pthread_barrier_wait(ready);
  for (;;) pause();
  return NULL;
}

static int serve(int threads, int advice) {
  pthread_barrier_t ready;
  pthread_barrier_init(&ready, NULL, threads);
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 64 << 10);
  for (int i = 1; i < threads; i++) {
    pthread_t thread;
    CHECK(!pthread_create(&thread, &small, sleeper, &ready), "pthread_create");
  }
  pthread_barrier_wait(&ready);
  memory = anonymous(size, advice);
  fill(memory, size, 1);
  say("ready\n");
  char line[64];
  for (;;) {
    char answer[64];
    hear(line, sizeof line);
    if (!strcmp(line, "fork")) {
      snprintf(answer, sizeof answer, "%.1f\n", (double)forks() / 1e3);
    } else if (!strncmp(line, "gap", 3)) {
      double percent = atof(line + 3);
      say("spinning\n");
      snprintf(answer, sizeof answer, "%.1f\n", (double)gap(percent) / 1e3);
      hear(line, sizeof line);
    } else {
      snprintf(answer, sizeof answer, "ok\n");
    }
    say(answer);
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
    return serve(atoi(words[2]), plain ? MADV_NORMAL : huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  }
}
