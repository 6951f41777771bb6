// SPDX-License-Identifier: LGPL-2.1-only
// Lives on another machine: clocks, sleeps, signals, growth of heap and stack, threads old and new, code that was loaded
// with dlopen and functions that were never called before.
#include "subject.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

#if defined(__GLIBC__) && defined(__PIC__)
#include <dlfcn.h>
static double (*cosine)(double);
static void load(void) {
  void *libm = dlopen("libm.so.6", RTLD_NOW);
  CHECK(libm, "%s", dlerror());
  cosine = (double (*)(double))dlsym(libm, "cos");
  CHECK(cosine, "%s", dlerror());
}
static void use_loaded(void) {
  volatile double zero = 0;
  CHECK(cosine(zero) == 1, "cos(0) is %f", cosine(zero));
}
#else
static void load(void) {}
static void use_loaded(void) {}
#endif

enum { OLD_THREADS = 3 };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static unsigned asked, answered, generation;
static volatile sig_atomic_t signals;
static _Thread_local unsigned mine;

static void *old_thread(void *argument) {
  unsigned seen = 0;
  mine = (unsigned)(uintptr_t)argument;
  pthread_mutex_lock(&lock);
  for (;;) {
    while (asked == seen) pthread_cond_wait(&changed, &lock);
    seen = asked;
    CHECK(mine == (uintptr_t)argument, "thread-local %u", mine);
    answered++;
    pthread_cond_broadcast(&changed);
  }
  return 0;
}

static void *new_thread(void *argument) {
  struct timespec t = {0, 10000000};
  nanosleep(&t, 0);
  return argument;
}

static void on_signal(int number) { signals += number == SIGUSR1 || number == SIGALRM; }

static int64_t nanoseconds(struct timespec t) { return t.tv_sec * 1000000000ll + t.tv_nsec; }

static void clocks(void) {
  static const clockid_t ids[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW,
                                  CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_PROCESS_CPUTIME_ID};
  for (unsigned i = 0; i < sizeof ids / sizeof *ids; i++) {
    struct timespec before, library, after;
    CHECK(!syscall(SYS_clock_gettime, ids[i], &before), "%m");
    CHECK(!clock_gettime(ids[i], &library), "clock %d: %m", ids[i]);
    CHECK(!syscall(SYS_clock_gettime, ids[i], &after), "%m");
    // The library's clock may be read from another processor, a little behind.
    int64_t slack = 20000000;
    CHECK(nanoseconds(before) - slack <= nanoseconds(library) && nanoseconds(library) <= nanoseconds(after) + slack,
          "clock %d: %lld, %lld, %lld", ids[i], (long long)nanoseconds(before), (long long)nanoseconds(library),
          (long long)nanoseconds(after));
    CHECK(!clock_getres(ids[i], &before) && nanoseconds(before) > 0, "clock %d has no resolution", ids[i]);
  }
  struct timeval now;
  struct timespec kernel;
  CHECK(!gettimeofday(&now, 0), "%m");
  CHECK(!syscall(SYS_clock_gettime, CLOCK_REALTIME, &kernel), "%m");
  CHECK(labs(now.tv_sec - kernel.tv_sec) <= 2 && labs(time(0) - kernel.tv_sec) <= 2, "gettimeofday, time: %ld, %ld",
        (long)now.tv_sec, (long)time(0));
  int cpu = sched_getcpu();
  CHECK(cpu >= 0 && cpu < sysconf(_SC_NPROCESSORS_CONF), "on processor %d", cpu);
}

static void sleeps(void) {
  struct timespec before, after, pause = {0, 20000000};
  clock_gettime(CLOCK_MONOTONIC, &before);
  CHECK(!nanosleep(&pause, 0), "%m");
  clock_gettime(CLOCK_MONOTONIC, &after);
  CHECK(nanoseconds(after) - nanoseconds(before) >= 20000000, "slept too little");
  after.tv_sec -= 1;
  CHECK(!clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &after, 0), "%m");
}

static void takes_signals(void) {
  sigset_t none, alarm;
  int before = signals;
  raise(SIGUSR1);
  CHECK(signals == before + 1, "%d signals", signals - before);
  sigemptyset(&none);
  sigemptyset(&alarm);
  sigaddset(&alarm, SIGALRM);
  pthread_sigmask(SIG_BLOCK, &alarm, 0);
  struct itimerval soon = {{0, 0}, {0, 10000}};
  CHECK(!setitimer(ITIMER_REAL, &soon, 0), "%m");
  // It is blocked in all threads, else another could take it just before this one waits.
  while (signals == before + 1) sigsuspend(&none);
}

// The two copies of the auxiliary vector agree, and it still says how much stack a signal takes.
static void auxiliary_vector(void) {
  unsigned long pairs[64][2] = {0};
  int fd = open("/proc/self/auxv", O_RDONLY);
  CHECK(fd >= 0 && read(fd, pairs, sizeof pairs - 1) > 0 && !close(fd), "%m");
  for (int i = 0; pairs[i][0]; i++) {
    // glibc says something of its own there, or what it has noted at the start.
    if (pairs[i][0] == AT_HWCAP || pairs[i][0] == AT_HWCAP2) continue;
    CHECK(getauxval(pairs[i][0]) == pairs[i][1], "entry %lu: %lx, %lx", pairs[i][0], getauxval(pairs[i][0]), pairs[i][1]);
  }
  unsigned long frame = getauxval(51);  // AT_MINSIGSTKSZ
  stack_t before, stack = {.ss_size = frame ? frame + 1024 : 65536};
  char memory[65536] __attribute__((aligned(64)));
  stack.ss_sp = memory + sizeof memory - stack.ss_size;
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
  int count = signals;
  CHECK(!sigaction(SIGUSR1, &action, 0) && !sigaltstack(&stack, &before), "%m");
  raise(SIGUSR1);
  action.sa_flags = 0;
  CHECK(signals == count + 1 && !sigaltstack(&before, 0) && !sigaction(SIGUSR1, &action, 0), "%m");
}

static unsigned deep(unsigned depth) {
  volatile unsigned char frame[8192];
  frame[depth % sizeof frame] = (unsigned char)depth;
  return depth ? deep(depth - 1) + (frame[depth % sizeof frame] == (unsigned char)depth) : 0;
}

static void grows(void) {
  size_t size = (size_t)24 << 20;
#ifdef __GLIBC__
  unsigned char *block = malloc(size), *end = sbrk(1 << 20);
#else  // musl has no sbrk
  unsigned char *block = malloc(size), *end = malloc(1 << 20);
#endif
  CHECK(block && end && end != (void *)-1, "%m");
  fill(block, size, generation);
  memset(end, 7, 1 << 20);
  CHECK(differs(block, size, generation) < 0, "the heap differs");
  free(block);
  CHECK(deep(500) == 500, "the stack differs");
}

static void threads(void) {
  pthread_mutex_lock(&lock);
  answered = 0;
  asked++;
  pthread_cond_broadcast(&changed);
  while (answered < OLD_THREADS) pthread_cond_wait(&changed, &lock);
  pthread_mutex_unlock(&lock);
  pthread_t thread;
  void *result;
  CHECK(!pthread_create(&thread, 0, new_thread, &asked), "no new thread");
  CHECK(!pthread_join(thread, &result) && result == &asked, "the new thread");
}

// Each check calls another function for the first time, with a number in a vector register; the dynamic linker has to
// find it then, and leave the register and the caller's frame as they are.
static void first_call(void) {
  volatile unsigned char around[512];
  memset((void *)around, 0x5a, sizeof around);
  char text[64] = "";
  volatile double number = 1.5 + generation;
  if (generation == 0) snprintf(text, sizeof text, "%g", number);
  if (generation == 1) sprintf(text, "%g", number);
  if (generation == 2) {
    FILE *memory = fmemopen(text, sizeof text, "w");
    fprintf(memory, "%g", number);
    fclose(memory);
  }
  if (generation <= 2) CHECK(strtof(text, 0) == (float)number, "'%s' is not %g", text, number);
  for (unsigned i = 0; i < sizeof around; i++) CHECK(around[i] == 0x5a, "the frame differs at %u", i);
}

static void check(void) {
  clocks();
  sleeps();
  takes_signals();
  auxiliary_vector();
  grows();
  threads();
  use_loaded();
  first_call();
  generation++;
}

int main(void) {
  struct sigaction action = {.sa_handler = on_signal};
  sigaction(SIGUSR1, &action, 0);
  sigaction(SIGALRM, &action, 0);
  sigset_t alarm;
  sigemptyset(&alarm);
  sigaddset(&alarm, SIGALRM);
  pthread_sigmask(SIG_BLOCK, &alarm, 0);
  load();
  for (uintptr_t i = 1; i <= OLD_THREADS; i++) {
    pthread_t thread;
    CHECK(!pthread_create(&thread, 0, old_thread, (void *)i), "no thread");
  }
  return obey(check);
}
