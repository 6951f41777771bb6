// SPDX-License-Identifier: LGPL-2.1-only
// chain N: N chains of threads, each thread makes its successor and ends. A chain that loses its only thread stands still.
#include "subject.h"
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

struct chain {
  unsigned long links;
  int over;
};
static struct chain *chains;
static int number, leave;
static pthread_attr_t attributes;

struct link {
  struct chain *chain;
  pthread_t before;
  int first;
};

static void *live(void *value) {
  struct link *link = value;
  if (!link->first) CHECK(!pthread_join(link->before, 0), "join");
  __atomic_add_fetch(&link->chain->links, 1, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&leave, __ATOMIC_SEQ_CST)) {
    __atomic_store_n(&link->chain->over, 1, __ATOMIC_SEQ_CST);
    return 0;
  }
  struct link *next = malloc(sizeof *next);
  *next = (struct link){link->chain, pthread_self(), 0};
  free(link);
  pthread_t successor;
  CHECK(!pthread_create(&successor, &attributes, live, next), "%m");
  return 0;
}

static void check(void) {
  for (int i = 0; i < number; i++) {
    unsigned long before = __atomic_load_n(&chains[i].links, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&chains[i].links, __ATOMIC_SEQ_CST) < before + 3) sched_yield();
  }
}

int main(int argc, char **argv) {
  CHECK(argc == 2, "usage: chain N");
  number = atoi(argv[1]);
  chains = calloc(number, sizeof *chains);
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 65536);
  for (int i = 0; i < number; i++) {
    struct link *first = malloc(sizeof *first);
    *first = (struct link){&chains[i], 0, 1};
    pthread_t thread;
    CHECK(!pthread_create(&thread, &attributes, live, first), "%m");
  }
  int result = obey(check);
  __atomic_store_n(&leave, 1, __ATOMIC_SEQ_CST);
  for (int i = 0; i < number; i++)
    while (!__atomic_load_n(&chains[i].over, __ATOMIC_SEQ_CST)) sched_yield();
  return result;
}
