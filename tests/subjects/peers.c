// SPDX-License-Identifier: LGPL-2.1-only
// Processes that look into each other's memory all the time, as MPI's ranks do (process_vm_readv(2)).
#include "subject.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>

enum { PEERS = 16 };
static struct {
  pid_t ids[PEERS];
  volatile long looks[PEERS], refused[PEERS];
} *all;
static long own = 42;

static void look(int self) {
  for (;; all->looks[self]++) {
    pid_t peer = all->ids[all->looks[self] % PEERS];
    long seen = 0;
    struct iovec to = {&seen, sizeof seen}, from = {&own, sizeof own};
    if (peer && (process_vm_readv(peer, &to, 1, &from, 1, 0) < 0 || seen != 42)) all->refused[self] = errno;
    if (all->looks[self] > 100) usleep(1000);
  }
}

int main(void) {
  all = mmap(0, sizeof *all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  for (int i = 0; i < PEERS; i++) {
    pid_t child = fork();
    if (!child) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      look(i);
    }
    all->ids[i] = child;
  }
  say("ready\n");
  for (char order[16];;) {
    hear(order, sizeof order);
    for (int i = 0; i < PEERS; i++) {
      long before = all->looks[i];
      while (all->looks[i] < before + 2) usleep(1000);
      CHECK(!all->refused[i], "%d was refused: %ld", i, all->refused[i]);
    }
    if (!strcmp(order, "go")) return 0;
    say("ok\n");
  }
}
