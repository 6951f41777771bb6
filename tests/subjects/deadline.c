// Sleeps until a moment of CLOCK_MONOTONIC, two seconds after it is ready, by clock_nanosleep and, in another thread, by a
// condition variable; both must wake in time, whatever the clock of the machine says.
#include "subject.h"
#include <pthread.h>
#include <time.h>

static struct timespec end;

static void *wait_for_condition(void *unused) {
  pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  pthread_condattr_t attributes;
  pthread_cond_t never;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(&never, &attributes);
  pthread_mutex_lock(&lock);
  int result = pthread_cond_timedwait(&never, &lock, &end);
  CHECK(result == ETIMEDOUT, "%s", strerror(result));
  return unused;
}

int main(void) {
  pthread_t thread;
  clock_gettime(CLOCK_MONOTONIC, &end);
  end.tv_sec += 2;
  CHECK(!pthread_create(&thread, 0, wait_for_condition, 0), "no thread");
  say("ready\n");
  int result = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, 0);
  CHECK(!result, "%s", strerror(result));
  pthread_join(thread, 0);
  say("woke\n");
  return 0;
}
