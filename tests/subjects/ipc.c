// SPDX-License-Identifier: LGPL-2.1-only
// ipc KIND: two processes that talk by memory, locks and objects of the kernel. The child waits in the object, or holds
// it; each check makes it do something, and compares what both see.
//   posix FILE    shm_open(3), sem_open(3) and a mapped FILE, found by name again; locks of every kind between them
//   sysv          shared memory with a key, without one and removed; semaphores; messages that wait
//   awaited       a semaphore and a queue on which children wait, and which nobody has used yet
//   undo          semaphores that the kernel gives back when their holder ends
//   events        eventfd, timerfd and signalfd that both have
//   inotify DIR   watches on DIR and on an open file in it
//   pidfd         process descriptors of a child, of one that is dead and of one that was waited for
#include "subject.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

enum { SIZE = 300000 };

struct shared {
  pthread_mutex_t robust, inherit, turn;
  pthread_cond_t changed;
  pthread_rwlock_t many;
  pthread_barrier_t both;
  sem_t ask, answer;
  unsigned generation, seen;
  unsigned char data[SIZE];
};

static struct shared *shared;
static pid_t child;
static char name[64], named[64];
static sem_t *by_name;
static volatile unsigned *file;
static const char *path;

static void make_locks(void) {
  pthread_mutexattr_t mutex;
  pthread_condattr_t cond;
  pthread_rwlockattr_t rwlock;
  pthread_barrierattr_t barrier;
  pthread_mutexattr_init(&mutex);
  pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
  pthread_mutex_init(&shared->turn, &mutex);
  pthread_mutexattr_setrobust(&mutex, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&shared->robust, &mutex);
  pthread_mutexattr_setprotocol(&mutex, PTHREAD_PRIO_INHERIT);
  pthread_mutex_init(&shared->inherit, &mutex);
  pthread_condattr_init(&cond);
  pthread_condattr_setpshared(&cond, PTHREAD_PROCESS_SHARED);
  pthread_cond_init(&shared->changed, &cond);
  pthread_rwlockattr_init(&rwlock);
  pthread_rwlockattr_setpshared(&rwlock, PTHREAD_PROCESS_SHARED);
  pthread_rwlock_init(&shared->many, &rwlock);
  pthread_barrierattr_init(&barrier);
  pthread_barrierattr_setpshared(&barrier, PTHREAD_PROCESS_SHARED);
  pthread_barrier_init(&shared->both, &barrier, 2);
  sem_init(&shared->ask, 1, 0);
  sem_init(&shared->answer, 1, 0);
}

// Waits for locks that the parent holds, then lets it wait for its own.
static void other_posix(void) {
  for (unsigned generation = 1;; generation++) {
    CHECK(!pthread_mutex_lock(&shared->robust), "robust");
    CHECK(!pthread_mutex_lock(&shared->inherit), "inherit");
    CHECK(!pthread_rwlock_rdlock(&shared->many), "rwlock");
    CHECK(shared->generation == generation, "generation %u, not %u", shared->generation, generation);
    CHECK(differs(shared->data, SIZE, generation) < 0, "data");
    CHECK(*file == generation, "the file has %u, not %u", *file, generation);
    fill(shared->data, SIZE, ~generation);
    CHECK(!pthread_rwlock_unlock(&shared->many), "rwlock");
    CHECK(!pthread_mutex_unlock(&shared->inherit), "inherit");
    CHECK(!pthread_mutex_unlock(&shared->robust), "robust");
    sem_post(by_name);
    pthread_barrier_wait(&shared->both);
    pthread_mutex_lock(&shared->turn);
    while (shared->seen != generation) pthread_cond_wait(&shared->changed, &shared->turn);
    pthread_mutex_unlock(&shared->turn);
    sem_post(&shared->answer);
    sem_wait(&shared->ask);
  }
}

static void hold_all(void) {
  CHECK(!pthread_rwlock_wrlock(&shared->many), "rwlock");
  CHECK(!pthread_mutex_lock(&shared->inherit), "inherit");
  CHECK(!pthread_mutex_lock(&shared->robust), "robust");
}

static void check_posix(void) {
  static unsigned generation;
  generation++;
  // Whoever opens it by its name has the same memory.
  int fd = shm_open(name, O_RDWR, 0);
  CHECK(fd >= 0, "%s: %m", name);
  struct shared *again = mmap(0, sizeof *again, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(again != MAP_FAILED, "%m");
  close(fd);
  again->generation = generation;
  CHECK(shared->generation == generation, "another memory has the name");
  munmap(again, sizeof *again);
  sem_t *second = sem_open(named, 0);
  CHECK(second != SEM_FAILED, "%s: %m", named);
  fd = open(path, O_RDWR);
  CHECK(fd >= 0 && pwrite(fd, &generation, sizeof generation, 0) == sizeof generation, "%m");
  CHECK(*file == generation, "another file has the name");
  close(fd);
  fill(shared->data, SIZE, generation);
  CHECK(!pthread_mutex_unlock(&shared->robust), "robust");
  CHECK(!pthread_mutex_unlock(&shared->inherit), "inherit");
  CHECK(!pthread_rwlock_unlock(&shared->many), "rwlock");
  CHECK(!sem_wait(second), "%m");
  sem_close(second);
  pthread_barrier_wait(&shared->both);
  CHECK(differs(shared->data, SIZE, ~generation) < 0, "the child's data");
  pthread_mutex_lock(&shared->turn);
  shared->seen = generation;
  pthread_cond_broadcast(&shared->changed);
  pthread_mutex_unlock(&shared->turn);
  sem_wait(&shared->answer);
  hold_all();
  sem_post(&shared->ask);
}

static int posix(const char *where) {
  path = where;
  snprintf(name, sizeof name, "/ckpt-ipc-%d", getpid());
  snprintf(named, sizeof named, "/ckpt-sem-%d", getpid());
  int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0640);
  CHECK(fd >= 0 && !ftruncate(fd, sizeof *shared), "%m");
  shared = mmap(0, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  by_name = sem_open(named, O_CREAT | O_EXCL, 0600, 0);
  int disk = open(path, O_RDWR | O_CREAT | O_EXCL, 0644);
  CHECK(disk >= 0 && !ftruncate(disk, 4096), "%m");
  file = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, disk, 0);
  CHECK(shared != MAP_FAILED && by_name != SEM_FAILED && file != MAP_FAILED, "%m");
  close(disk);
  make_locks();
  hold_all();
  if (!(child = fork())) other_posix();
  obey(check_posix);
  struct stat status;
  CHECK(!fstat(fd, &status) && (status.st_mode & 0777) == 0640, "mode %o", status.st_mode);
  CHECK(!shm_unlink(name) && !sem_unlink(named) && !unlink(path), "%m");
  return 0;
}

struct message {
  long type;
  char text[100];
};

static key_t key;
static int segments[3], semaphores, queues[2];
static unsigned char *memory[3];

static void change(int number, int by) {
  struct sembuf change = {number, by, 0};
  CHECK(!semop(semaphores, &change, 1), "%m");
}

static void other_sysv(void) {
  for (unsigned generation = 1;; generation++) {
    change(0, -1);
    struct message message;
    CHECK(msgrcv(queues[1], &message, sizeof message.text, 7, 0) == 5, "%m");
    for (int i = 0; i < 3; i++) {
      CHECK(differs(memory[i], SIZE, generation + i) < 0, "data of segment %d", i);
      fill(memory[i], SIZE, ~(generation + i));
    }
    change(1, 1);
  }
}

static void check_sysv(void) {
  static unsigned generation;
  generation++;
  for (int i = 0; i < 3; i++) {
    struct shmid_ds status;
    CHECK(!shmctl(segments[i], IPC_STAT, &status), "segment %d: %m", segments[i]);
    CHECK(status.shm_segsz == SIZE && status.shm_nattch >= 2, "segment %d", i);
    CHECK((status.shm_perm.mode & SHM_DEST) == (i == 2 ? SHM_DEST : 0), "mode %o", status.shm_perm.mode);
    CHECK((status.shm_perm.mode & 0777) == 0600, "mode %o", status.shm_perm.mode);
    fill(memory[i], SIZE, generation + i);
  }
  CHECK(shmget(key, SIZE, 0) == segments[0], "the key: %m");
  CHECK(msgget(key, 0) == queues[0], "the key: %m");
  CHECK(semget(key, 3, 0) == semaphores, "the key: %m");
  // One more mapping, which is let go.
  unsigned char *again = shmat(segments[1], 0, SHM_RDONLY);
  CHECK(again != (void *)-1 && differs(again, SIZE, generation + 1) < 0, "%m");
  CHECK(!shmdt(again), "%m");
  CHECK(semctl(semaphores, 2, GETVAL) == 42, "%d", semctl(semaphores, 2, GETVAL));
  struct message message = {7, "news"};
  CHECK(!msgsnd(queues[1], &message, 5, 0), "%m");
  change(0, 1);
  change(1, -1);
  for (int i = 0; i < 3; i++)
    CHECK(differs(memory[i], SIZE, ~(generation + i)) < 0, "the child's data");
  // What waits in the other queue stays there, in its order.
  const char *texts[] = {"first", "second", "third"};
  for (int i = 0; i < 3; i++) {
    memset(&message, 0, sizeof message);
    CHECK(msgrcv(queues[0], &message, sizeof message.text, 0, IPC_NOWAIT) > 0, "%m");
    CHECK(!strcmp(message.text, texts[i]) && message.type == 3 - i, "%ld %s", message.type, message.text);
    CHECK(!msgsnd(queues[0], &message, strlen(texts[i]) + 1, 0), "%m");
  }
}

static int sysv(void) {
  key = 0x43000000 | getpid();
  semaphores = semget(key, 3, IPC_CREAT | IPC_EXCL | 0600);
  queues[0] = msgget(key, IPC_CREAT | IPC_EXCL | 0600);
  queues[1] = msgget(IPC_PRIVATE, 0600);
  CHECK(semaphores >= 0 && queues[0] >= 0 && queues[1] >= 0, "%m");
  CHECK(!semctl(semaphores, 2, SETVAL, 42), "%m");
  const char *texts[] = {"first", "second", "third"};
  for (int i = 0; i < 3; i++) {
    struct message message = {3 - i, ""};
    strcpy(message.text, texts[i]);
    CHECK(!msgsnd(queues[0], &message, strlen(texts[i]) + 1, 0), "%m");
  }
  for (int i = 0; i < 3; i++) {
    segments[i] = shmget(i ? IPC_PRIVATE : key, SIZE, IPC_CREAT | IPC_EXCL | 0600);
    CHECK(segments[i] >= 0, "%m");
    memory[i] = shmat(segments[i], 0, 0);
    CHECK(memory[i] != (void *)-1, "%m");
  }
  CHECK(!shmctl(segments[2], IPC_RMID, 0), "%m");
  printf("ids -s %d -q %d -q %d -m %d -m %d\n", semaphores, queues[0], queues[1], segments[0], segments[1]);
  fflush(stdout);
  if (!(child = fork())) other_sysv();
  obey(check_sysv);
  CHECK(!semctl(semaphores, 0, IPC_RMID) && !shmctl(segments[0], IPC_RMID, 0), "%m");
  CHECK(!shmctl(segments[1], IPC_RMID, 0), "%m");
  CHECK(!msgctl(queues[0], IPC_RMID, 0) && !msgctl(queues[1], IPC_RMID, 0), "%m");
  return 0;
}

static int orders[2], answers[2];

// Waits until a process is in one of two system calls.
static void await_call(pid_t pid, long call, long other) {
  char path[64], text[32];
  snprintf(path, sizeof path, "/proc/%d/syscall", pid);
  for (long seen = -1; seen != call && seen != other; usleep(1000)) {
    FILE *file = fopen(path, "r");
    CHECK(file, "%s: %m", path);
    if (fgets(text, sizeof text, file) && sscanf(text, "%ld", &seen) != 1) seen = -1;
    fclose(file);
  }
}

static void check_awaited(void) {
  struct message message = {7, "news"};
  change(0, 1);
  CHECK(!msgsnd(queues[0], &message, 5, 0), "%m");
  for (int seen = 0; seen != 3;) {
    char who;
    CHECK(read(answers[0], &who, 1) == 1 && !(seen & who), "%m");
    seen |= who;
  }
}

static int awaited(void) {
  semaphores = semget(IPC_PRIVATE, 1, 0600);
  queues[0] = msgget(IPC_PRIVATE, 0600);
  CHECK(semaphores >= 0 && queues[0] >= 0 && !pipe(answers), "%m");
  printf("ids -s %d -q %d\n", semaphores, queues[0]);
  fflush(stdout);
  if (!(child = fork()))
    for (;;) {
      change(0, -1);
      CHECK(write(answers[1], "\1", 1) == 1, "%m");
    }
  pid_t other = fork();
  if (!other)
    for (struct message message;;) {
      CHECK(msgrcv(queues[0], &message, sizeof message.text, 7, 0) == 5, "%m");
      CHECK(write(answers[1], "\2", 1) == 1, "%m");
    }
  await_call(child, SYS_semop, SYS_semtimedop);
  await_call(other, SYS_msgrcv, SYS_msgrcv);
  obey(check_awaited);
  kill(other, SIGKILL);
  kill(child, SIGKILL);
  CHECK(wait(0) > 0 && wait(0) > 0, "%m");
  child = 0;
  CHECK(!semctl(semaphores, 0, IPC_RMID) && !msgctl(queues[0], IPC_RMID, 0), "%m");
  return 0;
}

static int owing(int number, int by) {
  struct sembuf change = {number, by, SEM_UNDO};
  return semop(semaphores, &change, 1);
}

static void holder(void) {
  char order;
  CHECK(!owing(0, -1) && !owing(1, 3) && !owing(2, -30000), "%m");
  for (;;) {
    CHECK(write(answers[1], "!", 1) == 1 && read(orders[0], &order, 1) == 1, "%m");
    if (order == 'e') _exit(0);
    // Let go and taken again, so that as much is owed as before.
    CHECK(!owing(1, -2) && !owing(1, 2) && !owing(2, 30000) && !owing(2, -30000), "%m");
  }
}

static void waiter(void) {
  CHECK(!owing(0, -1), "%m");
  CHECK(semctl(semaphores, 1, GETVAL) == 0, "it has %d", semctl(semaphores, 1, GETVAL));
  CHECK(semctl(semaphores, 2, GETVAL) == 30000, "it has %d", semctl(semaphores, 2, GETVAL));
  _exit(0);
}

static void check_undo(void) {
  char answer;
  CHECK(write(orders[1], "c", 1) == 1 && read(answers[0], &answer, 1) == 1, "%m");
  unsigned short values[3];
  CHECK(!semctl(semaphores, 0, GETALL, values), "%m");
  CHECK(!values[0] && values[1] == 3 && !values[2], "%u %u %u", values[0], values[1], values[2]);
}

static int undo(void) {
  char answer;
  semaphores = semget(IPC_PRIVATE, 3, 0600);
  CHECK(semaphores >= 0 && !pipe(orders) && !pipe(answers), "%m");
  CHECK(!semctl(semaphores, 0, SETVAL, 1) && !semctl(semaphores, 2, SETVAL, 30000), "%m");
  printf("ids -s %d\n", semaphores);
  fflush(stdout);
  pid_t pids[2];
  if (!(pids[0] = fork())) holder();
  CHECK(read(answers[0], &answer, 1) == 1, "%m");
  if (!(pids[1] = fork())) waiter();
  obey(check_undo);
  CHECK(write(orders[1], "e", 1) == 1, "%m");
  int status;
  CHECK(waitpid(pids[0], &status, 0) == pids[0] && !status, "status %x", status);
  CHECK(waitpid(pids[1], &status, 0) == pids[1] && !status, "status %x", status);
  CHECK(!semctl(semaphores, 0, IPC_RMID), "%m");
  return 0;
}

static int counts[2], timer, signals;

static uint64_t taken(int fd) {
  uint64_t count = 0;
  CHECK(read(fd, &count, sizeof count) == sizeof count, "%m");
  return count;
}

static void give(int fd, uint64_t count) {
  CHECK(write(fd, &count, sizeof count) == sizeof count, "%m");
}

static void other_events(void) {
  for (;;) {
    CHECK(taken(counts[0]) == 1, "a semaphore");
    CHECK(taken(timer) >= 1, "a timer");
    struct signalfd_siginfo info;
    CHECK(read(signals, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR1, "%m");
    give(counts[1], 5);
  }
}

static void check_events(void) {
  give(counts[0], 1);
  struct itimerspec soon = {{1000, 0}, {0, 1000}}, left;
  CHECK(!timerfd_settime(timer, 0, &soon, 0), "%m");
  CHECK(!kill(child, SIGUSR1), "%m");
  CHECK(taken(counts[1]) == 5, "a count");
  CHECK(!timerfd_gettime(timer, &left) && left.it_interval.tv_sec == 1000, "%m");
}

static int events(void) {
  sigset_t set_;
  sigemptyset(&set_);
  sigaddset(&set_, SIGUSR1);
  sigprocmask(SIG_BLOCK, &set_, 0);
  counts[0] = eventfd(0, EFD_SEMAPHORE), counts[1] = eventfd(0, 0);
  timer = timerfd_create(CLOCK_MONOTONIC, 0), signals = signalfd(-1, &set_, 0);
  CHECK(counts[0] >= 0 && counts[1] >= 0 && timer >= 0 && signals >= 0, "%m");
  if (!(child = fork())) other_events();
  return obey(check_events);
}

static int notices, opened, watches[2];
static const char *directory;

static void check_inotify(void) {
  char made[200], room[4096] __attribute__((aligned(8)));
  snprintf(made, sizeof made, "%s/made", directory);
  int fd = open(made, O_CREAT | O_WRONLY, 0600);
  CHECK(fd >= 0 && write(opened, "x", 1) == 1, "%m");
  int seen[2] = {0, 0};
  ssize_t got = read(notices, room, sizeof room);
  CHECK(got > 0, "%m");
  struct inotify_event *event;
  for (char *at = room; at < room + got; at += sizeof *event + event->len) {
    event = (struct inotify_event *)at;
    if (event->wd == watches[0] && event->mask & IN_CREATE && !strcmp(event->name, "made")) seen[0]++;
    else if (event->wd == watches[1] && event->mask & IN_MODIFY) seen[1]++;
    else CHECK(0, "event %x of %d", event->mask, event->wd);
  }
  CHECK(seen[0] == 1 && seen[1] == 1, "%d %d", seen[0], seen[1]);
  CHECK(!close(fd) && !unlink(made), "%m");
}

static int inotify(const char *where) {
  directory = where;
  char file_[200];
  snprintf(file_, sizeof file_, "%s/file", directory);
  CHECK(!mkdir(directory, 0700), "%m");
  opened = open(file_, O_CREAT | O_APPEND | O_WRONLY, 0600), notices = inotify_init1(0);
  CHECK(opened >= 0 && notices >= 0, "%m");
  // Numbers that were given away before are not given again.
  for (int i = 0; i < 3; i++) inotify_rm_watch(notices, inotify_add_watch(notices, "/", IN_CREATE));
  watches[0] = inotify_add_watch(notices, directory, IN_CREATE);
  watches[1] = inotify_add_watch(notices, file_, IN_MODIFY);
  CHECK(watches[0] == 4 && watches[1] == 5, "%d %d", watches[0], watches[1]);
  char room[4096];
  CHECK(read(notices, room, sizeof room) > 0, "%m");
  return obey(check_inotify);
}

static int pidfd_of(pid_t pid) {
  return (int)syscall(SYS_pidfd_open, pid, 0);
}

static int children[3], set;

static int readable(int fd) {
  struct pollfd poll_ = {fd, POLLIN, 0};
  return poll(&poll_, 1, 0) == 1 && poll_.revents & POLLIN;
}

static void check_pidfd(void) {
  CHECK(!readable(children[0]) && readable(children[1]) && readable(children[2]), "poll");
  CHECK(!syscall(SYS_pidfd_send_signal, children[0], 0, 0, 0), "%m");
  CHECK(syscall(SYS_pidfd_send_signal, children[2], 0, 0, 0) < 0 && errno == ESRCH, "%m");
  struct epoll_event event;
  CHECK(epoll_wait(set, &event, 1, 0) == 1 && event.data.u32 == 1, "epoll");
  siginfo_t info = {0};
  CHECK(!waitid(P_PIDFD, children[1], &info, WEXITED | WNOWAIT | WNOHANG), "%m");
  CHECK(info.si_status == 5, "status %d", info.si_status);
  CHECK(!waitid(P_PIDFD, children[0], &info, WEXITED | WNOHANG) && !info.si_pid, "it lives");
}

static int pidfd(void) {
  pid_t pids[3];
  for (int i = 0; i < 3; i++) {
    if (!(pids[i] = fork())) {
      if (i == 0) pause();
      _exit(4 + i);
    }
    children[i] = pidfd_of(pids[i]);
    CHECK(children[i] >= 0, "%m");
  }
  siginfo_t info;
  CHECK(!waitid(P_PID, pids[1], &info, WEXITED | WNOWAIT), "%m");
  CHECK(waitpid(pids[2], 0, 0) == pids[2], "%m");
  set = epoll_create1(0);
  for (unsigned i = 0; i < 2; i++) {
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
    CHECK(!epoll_ctl(set, EPOLL_CTL_ADD, children[i], &event), "%m");
  }
  obey(check_pidfd);
  CHECK(!syscall(SYS_pidfd_send_signal, children[0], SIGKILL, 0, 0), "%m");
  CHECK(!waitid(P_PIDFD, children[0], &info, WEXITED) && info.si_status == SIGKILL, "%m");
  CHECK(!waitid(P_PIDFD, children[1], &info, WEXITED) && info.si_status == 5, "%m");
  return 0;
}

int main(int count, char **arguments) {
  const char *kind = count > 1 ? arguments[1] : "";
  int status = 1;
  if (!strcmp(kind, "posix")) status = posix(arguments[2]);
  if (!strcmp(kind, "sysv")) status = sysv();
  if (!strcmp(kind, "awaited")) status = awaited();
  if (!strcmp(kind, "undo")) status = undo();
  if (!strcmp(kind, "events")) status = events();
  if (!strcmp(kind, "inotify")) status = inotify(arguments[2]);
  if (!strcmp(kind, "pidfd")) status = pidfd();
  if (child > 0) kill(child, SIGKILL);
  return status;
}
