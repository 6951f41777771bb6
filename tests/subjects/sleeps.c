// SPDX-License-Identifier: LGPL-2.1-only
// sleeps timed|untimed|restartable: one thread sleeps in each of the calls. Those with a time limit must neither end
// early nor with EINTR; then the program says "over". The others are woken by "go" and must then succeed.
#include "subject.h"
#include <fcntl.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

static const double LIMIT = 1.5;
static struct timespec limit = {1, 500 * 1000 * 1000};
static const struct timespec for_ever = {100000, 0};
static int sockets[2], patient[2], pipes[2], full[2], epoll, empty_epoll, event, timer, far_timer, signal_fd, watch, listener;
static int semaphores, messages;
static mqd_t queue;
static pid_t child;
static int child_gate[2];
static volatile int word;
static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER, free_one = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER, later = PTHREAD_COND_INITIALIZER;
static pthread_rwlock_t locked = PTHREAD_RWLOCK_INITIALIZER;
static sem_t closed, opened_later;
static volatile int woken, handled;
static char lock_path[64], socket_name[64];
static int lock_fd[2];

static struct timespec after(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  t.tv_sec += limit.tv_sec, t.tv_nsec += limit.tv_nsec;
  if (t.tv_nsec >= 1000000000) t.tv_sec++, t.tv_nsec -= 1000000000;
  return t;
}

// The result of calls that should say that the time is over: 0 if they do.
static long over(long result, int error) { return result < 0 && errno == error ? 0 : -1; }
static long code(int result, int error) { return (errno = result) == error ? 0 : -1; }
static struct pollfd reading(int fd) { return (struct pollfd){.fd = fd, .events = POLLIN}; }

// Sleeps with a limit: 0 when they ended as they should.
static long by_nanosleep(void) { return nanosleep(&limit, 0); }
static long by_usleep(void) { return usleep(LIMIT * 1e6); }
static long by_relative(void) { return -(errno = clock_nanosleep(CLOCK_MONOTONIC, 0, &limit, 0)); }
static long by_boottime(void) { return -(errno = clock_nanosleep(CLOCK_BOOTTIME, 0, &limit, 0)); }
static long by_realtime(void) { return -(errno = clock_nanosleep(CLOCK_REALTIME, 0, &limit, 0)); }
static long by_absolute(void) {
  struct timespec end = after(CLOCK_MONOTONIC);
  return -(errno = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, 0));
}
static long by_absolute_realtime(void) {
  struct timespec end = after(CLOCK_REALTIME);
  return -(errno = clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &end, 0));
}
static long by_poll(void) {
  struct pollfd fd = reading(sockets[0]);
  return poll(&fd, 1, LIMIT * 1000);
}
static long by_poll_of_nothing(void) { return poll(0, 0, LIMIT * 1000); }
static long by_ppoll(void) {
  struct pollfd fd = reading(sockets[0]);
  sigset_t none;
  sigemptyset(&none);
  return ppoll(&fd, 1, &limit, &none);
}
static long by_select(void) {
  fd_set set;
  FD_ZERO(&set);
  FD_SET(sockets[0], &set);
  struct timeval value = {limit.tv_sec, limit.tv_nsec / 1000};
  return select(sockets[0] + 1, &set, 0, 0, &value);
}
static long by_pselect(void) { return pselect(0, 0, 0, 0, &limit, 0); }
static long by_epoll_wait(void) {
  struct epoll_event got;
  return epoll_wait(empty_epoll, &got, 1, LIMIT * 1000);
}
static long by_epoll_pwait2(void) {
  struct epoll_event got;
  return syscall(441, empty_epoll, &got, 1, &limit, 0, 8);
}
static long by_sigtimedwait(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 6);
  return over(sigtimedwait(&set, 0, &limit), EAGAIN);
}
static long by_futex(void) { return over(syscall(SYS_futex, &word, FUTEX_WAIT, 0, &limit, 0, 0), ETIMEDOUT); }
static long by_futex_bitset(void) {
  struct timespec end = after(CLOCK_MONOTONIC);
  return over(syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, 0, &end, 0, -1), ETIMEDOUT);
}
static long by_futex_waitv(void) {
  struct { uint64_t value, address; uint32_t flags, reserved; } vector = {0, (uintptr_t)&word, 2, 0};
  struct timespec end = after(CLOCK_MONOTONIC);
  long result = syscall(449, &vector, 1, 0, &end, CLOCK_MONOTONIC);
  return result < 0 && errno == ENOSYS ? usleep(LIMIT * 1e6) : over(result, ETIMEDOUT);
}
static long by_condition(void) {
  struct timespec end = after(CLOCK_REALTIME);
  pthread_mutex_t mine = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(&mine);
  int result;
  do result = pthread_cond_timedwait(&never, &mine, &end);
  while (!result);
  return code(result, ETIMEDOUT);
}
static long by_mutex(void) {
  struct timespec end = after(CLOCK_REALTIME);
  return code(pthread_mutex_timedlock(&held, &end), ETIMEDOUT);
}
static long by_rwlock(void) {
  struct timespec end = after(CLOCK_REALTIME);
  return code(pthread_rwlock_timedrdlock(&locked, &end), ETIMEDOUT);
}
static long by_sem_timedwait(void) {
  struct timespec end = after(CLOCK_REALTIME);
  return over(sem_timedwait(&closed, &end), ETIMEDOUT);
}
static long by_mq_timedreceive(void) {
  struct timespec end = after(CLOCK_REALTIME);
  char text[16];
  return over(mq_timedreceive(queue, text, sizeof text, 0, &end), ETIMEDOUT);
}
static long by_semtimedop(void) {
  struct sembuf take = {.sem_op = -1};
  return over(semtimedop(semaphores, &take, 1, &limit), EAGAIN);
}
static long by_timerfd(void) {
  uint64_t times;
  struct itimerspec spec = {.it_value = limit};
  if (timerfd_settime(timer, 0, &spec, 0)) return -1;
  return read(timer, &times, 8) == 8 && times == 1 ? 0 : -1;
}

// A socket of a pair nobody else knows, with the limit as its time-out for `what`.
static int with_limit(int what, int *other) {
  int pair[2];
  struct timeval value = {limit.tv_sec, limit.tv_nsec / 1000};
  CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), "%m");
  CHECK(!setsockopt(pair[0], SOL_SOCKET, what, &value, sizeof value), "%m");
  *other = pair[1];
  return pair[0];
}
static long by_recv(void) {
  char byte;
  int other, fd = with_limit(SO_RCVTIMEO, &other);
  return over(recv(fd, &byte, 1, 0), EAGAIN);
}
static long by_read(void) {
  char byte;
  int other, fd = with_limit(SO_RCVTIMEO, &other);
  return over(read(fd, &byte, 1), EAGAIN);
}
static long by_send(void) {
  static char much[1 << 16];
  int other, fd = with_limit(SO_SNDTIMEO, &other);
  while (send(fd, much, sizeof much, MSG_DONTWAIT) > 0) {}
  return over(send(fd, much, sizeof much, 0), EAGAIN);
}

// Sleeps until `wake` ends them.
static long in_pause(void) { return over(pause(), EINTR) || !handled ? -1 : 0; }
static long in_poll(void) {
  struct pollfd fd = reading(pipes[0]);
  return poll(&fd, 1, -1) == 1 && fd.revents == POLLIN ? 0 : -1;
}
static long in_select(void) {
  fd_set set;
  FD_ZERO(&set);
  FD_SET(pipes[0], &set);
  return select(pipes[0] + 1, &set, 0, 0, 0) == 1 ? 0 : -1;
}
static long in_epoll_wait(void) {
  struct epoll_event got;
  return epoll_wait(epoll, &got, 1, -1) == 1 && got.data.u64 == 77 ? 0 : -1;
}
static long in_read(void) {
  char byte;
  return read(sockets[0], &byte, 1) == 1 && byte == 'x' ? 0 : -1;
}
static long in_write(void) {
  char text[4096] = {0};
  for (int i = 0; i < 40; i++)
    if (write(full[1], text, sizeof text) != sizeof text) return -1;
  return 0;
}
static long in_eventfd(void) {
  uint64_t value;
  return read(event, &value, 8) == 8 && value == 5 ? 0 : -1;
}
static long in_far_timerfd(void) {
  uint64_t times;
  return read(far_timer, &times, 8) == 8 && times == 1 ? 0 : -1;
}
static long in_signalfd(void) {
  struct signalfd_siginfo got;
  return read(signal_fd, &got, sizeof got) == sizeof got && got.ssi_signo == (unsigned)SIGRTMIN + 7 ? 0 : -1;
}
static long in_sigwait(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 8);
  return sigwaitinfo(&set, 0) == SIGRTMIN + 8 ? 0 : -1;
}
static long in_recv(void) {
  char byte;
  return recv(patient[0], &byte, 1, 0) == 1 && byte == 'y' && recv(patient[0], &byte, 1, 0) == 1 && byte == 'z' ? 0 : -1;
}
static long in_recv_until_a_signal(void) {
  char byte;
  return over(recv(patient[1], &byte, 1, 0), EINTR) || !handled ? -1 : 0;
}
static int ends_by_signal(long (*sleep)(void)) { return sleep == in_pause || sleep == in_recv_until_a_signal; }
static long in_accept(void) { return accept(listener, 0, 0) >= 0 ? 0 : -1; }
static long in_inotify(void) {
  char text[512];
  return read(watch, text, sizeof text) > 0 ? 0 : -1;
}
static long in_waitpid(void) {
  int status;
  return waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 9 ? 0 : -1;
}
static long in_flock(void) { return flock(lock_fd[1], LOCK_EX); }
static long in_setlkw(void) {
  struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  return fcntl(lock_fd[1], F_OFD_SETLKW, &whole);
}
static long in_semop(void) {
  struct sembuf take = {.sem_num = 1, .sem_op = -1};
  return semop(semaphores, &take, 1);
}
static long in_msgrcv(void) {
  struct { long type; char text[8]; } got;
  return msgrcv(messages, &got, sizeof got.text, 5, 0) == 2 ? 0 : -1;
}
static long in_futex(void) {
  while (!woken)
    if (syscall(SYS_futex, &woken, FUTEX_WAIT, 0, 0, 0, 0) && errno != EAGAIN) return -1;
  return 0;
}
static long in_timed_futex(void) {
  while (!woken)
    if (syscall(SYS_futex, &woken, FUTEX_WAIT, 0, &for_ever, 0, 0) && errno != EAGAIN) return -1;
  return 0;
}
static long in_mutex(void) { return pthread_mutex_lock(&held) || pthread_mutex_unlock(&held); }
static long in_condition(void) {
  pthread_mutex_lock(&free_one);
  while (!woken) pthread_cond_wait(&later, &free_one);
  return pthread_mutex_unlock(&free_one);
}
static long in_sem_wait(void) { return sem_wait(&opened_later); }

struct call { const char *name; long (*sleep)(void); int restartable; };
static const struct call timed[] = {
    {"nanosleep", by_nanosleep, 1}, {"usleep", by_usleep, 1}, {"relative", by_relative, 1},
    {"boottime", by_boottime, 1}, {"realtime", by_realtime, 1}, {"absolute", by_absolute, 1},
    {"absolute_realtime", by_absolute_realtime, 1}, {"poll", by_poll, 0}, {"poll_of_nothing", by_poll_of_nothing, 1},
    {"ppoll", by_ppoll, 0}, {"select", by_select, 0}, {"pselect", by_pselect, 1}, {"epoll_wait", by_epoll_wait, 1},
    {"epoll_pwait2", by_epoll_pwait2, 1}, {"sigtimedwait", by_sigtimedwait, 1}, {"futex", by_futex, 1},
    {"futex_bitset", by_futex_bitset, 1}, {"futex_waitv", by_futex_waitv, 1}, {"condition", by_condition, 1},
    {"mutex", by_mutex, 1}, {"rwlock", by_rwlock, 1}, {"sem_timedwait", by_sem_timedwait, 1},
    {"mq_timedreceive", by_mq_timedreceive, 0}, {"semtimedop", by_semtimedop, 0}, {"timerfd", by_timerfd, 1},
    {"timed_recv", by_recv, 0}, {"timed_read", by_read, 0}, {"timed_send", by_send, 0}};
static const struct call untimed[] = {
    {"pause", in_pause, 1}, {"poll", in_poll, 1}, {"select", in_select, 1}, {"epoll_wait", in_epoll_wait, 1},
    {"read", in_read, 0}, {"recv", in_recv, 0}, {"recv_until_a_signal", in_recv_until_a_signal, 0},
    {"write", in_write, 1}, {"eventfd", in_eventfd, 1}, {"far_timerfd", in_far_timerfd, 1},
    {"signalfd", in_signalfd, 1}, {"sigwait", in_sigwait, 1}, {"accept", in_accept, 0}, {"inotify", in_inotify, 0},
    {"waitpid", in_waitpid, 0}, {"flock", in_flock, 0}, {"setlkw", in_setlkw, 0}, {"semop", in_semop, 0},
    {"msgrcv", in_msgrcv, 0}, {"futex", in_futex, 1}, {"timed_futex", in_timed_futex, 1}, {"mutex", in_mutex, 1},
    {"condition", in_condition, 1}, {"sem_wait", in_sem_wait, 1}};
enum { TIMED = sizeof timed / sizeof *timed, UNTIMED = sizeof untimed / sizeof *untimed, MOST = TIMED + UNTIMED };

struct sleeper { const struct call *call; pthread_t thread; volatile int ended; pid_t tid; };
static struct sleeper sleepers[MOST];
static int number;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static void *run(void *at) {
  struct sleeper *me = at;
  int has_limit = me->call >= timed && me->call < timed + TIMED;
  sigset_t set;
  sigfillset(&set);
  if (ends_by_signal(me->call->sleep)) sigdelset(&set, SIGUSR1);
  pthread_sigmask(SIG_SETMASK, &set, 0);
  me->tid = syscall(SYS_gettid);
  double begin = now();
  errno = 0;
  long result = me->call->sleep();
  CHECK(result == 0, "%s %s gave %ld after %f s: %m", has_limit ? "timed" : "untimed", me->call->name, result,
        now() - begin);
  if (has_limit) CHECK(now() - begin >= LIMIT - 0.002, "%s ended after %f s", me->call->name, now() - begin);
  else CHECK(woken, "%s ended before it was woken", me->call->name);
  me->ended = 1;
  return 0;
}

static void on_signal(int signal) { (void)signal, handled++; }
static int wanted(const char *name) {
  for (int i = 0; i < number; i++)
    if (!strcmp(sleepers[i].call->name, name)) return 1;
  return 0;
}

// Objects that only some sleepers need are made for these: others could not be restored.
static void prepare_special(void) {
  if (wanted("accept")) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int length = snprintf(socket_name, sizeof socket_name, "sleeps-%d", getpid());
    memcpy(name.sun_path + 1, socket_name, length);
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(!bind(listener, (void *)&name, sizeof name.sun_family + 1 + length) && !listen(listener, 1), "%m");
  }
  if (wanted("inotify")) {
    watch = inotify_init1(IN_CLOEXEC);
    CHECK(!mkdir("watched", 0700) && inotify_add_watch(watch, "watched", IN_DELETE_SELF) >= 0, "%m");
  }
  if (wanted("waitpid")) {
    CHECK(!pipe2(child_gate, O_CLOEXEC), "%m");
    child = fork();
    char byte;
    if (!child) _exit(close(child_gate[1]) || read(child_gate[0], &byte, 1) != 1 ? 8 : 9);
  }
  if (wanted("flock") || wanted("setlkw")) {
    snprintf(lock_path, sizeof lock_path, "lock-%d", getpid());
    for (int i = 0; i < 2; i++) lock_fd[i] = open(lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    CHECK(!flock(lock_fd[0], LOCK_EX) && !fcntl(lock_fd[0], F_OFD_SETLK, &whole), "%m");
  }
  if (wanted("semop") || wanted("semtimedop")) semaphores = semget(IPC_PRIVATE, 2, 0600);
  if (wanted("msgrcv")) messages = msgget(IPC_PRIVATE, 0600);
  if (wanted("mq_timedreceive")) {
    char name[32];
    struct mq_attr size = {.mq_maxmsg = 1, .mq_msgsize = 16};
    snprintf(name, sizeof name, "/sleeps-%d", getpid());
    queue = mq_open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600, &size);
    CHECK(queue >= 0, "%m");
    mq_unlink(name);
  }
  if (wanted("read") || wanted("select") || wanted("ppoll"))
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), "%m");
  if (wanted("recv")) {
    // Its time-out is far.
    struct timeval value = {for_ever.tv_sec, 0};
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, patient), "%m");
    for (int i = 0; i < 2; i++)
      CHECK(!setsockopt(patient[i], SOL_SOCKET, SO_RCVTIMEO, &value, sizeof value), "%m");
  }
}

static void prepare(void) {
  prepare_special();
  CHECK(!pipe2(pipes, O_CLOEXEC) && !pipe2(full, O_CLOEXEC), "%m");
  fcntl(full[1], F_SETPIPE_SZ, 4096);
  epoll = epoll_create1(EPOLL_CLOEXEC), empty_epoll = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event wish = {.events = EPOLLIN, .data.u64 = 77};
  CHECK(!epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[0], &wish), "%m");
  event = eventfd(0, EFD_CLOEXEC);
  timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC), far_timer = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC);
  struct itimerspec far = {.it_value = for_ever};
  CHECK(!timerfd_settime(far_timer, 0, &far, 0), "%m");
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 7);
  signal_fd = signalfd(-1, &set, SFD_CLOEXEC);
  sem_init(&closed, 0, 0), sem_init(&opened_later, 0, 0);
  pthread_mutex_lock(&held), pthread_rwlock_wrlock(&locked);
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
  sigaction(SIGUSR1, &action, 0);
}

static void wake_special(void) {
  char byte = 'x';
  if (wanted("accept")) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    memcpy(name.sun_path + 1, socket_name, strlen(socket_name));
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(!connect(fd, (void *)&name, sizeof name.sun_family + 1 + strlen(socket_name)), "%m");
  }
  if (wanted("inotify")) CHECK(!rmdir("watched"), "%m");
  if (wanted("waitpid")) CHECK(write(child_gate[1], &byte, 1) == 1, "%m");
  if (wanted("flock") || wanted("setlkw")) close(lock_fd[0]);
  if (wanted("semop")) CHECK(!semctl(semaphores, 1, SETVAL, 1), "%m");
  struct { long type; char text[8]; } message = {5, "ab"};
  if (wanted("msgrcv")) CHECK(!msgsnd(messages, &message, 2, 0), "%m");
  if (wanted("read")) CHECK(write(sockets[1], &byte, 1) == 1, "%m");
  if (wanted("recv")) CHECK(write(patient[1], "yz", 2) == 2, "%m");
}

static void wake(void) {
  uint64_t five = 5;
  char text[4096];
  pthread_mutex_lock(&free_one);
  woken = 1;
  pthread_cond_broadcast(&later);
  pthread_mutex_unlock(&free_one);
  syscall(SYS_futex, &woken, FUTEX_WAKE, 1000, 0, 0, 0);
  pthread_mutex_unlock(&held), sem_post(&opened_later);
  wake_special();
  CHECK(write(pipes[1], "x", 1) == 1 && write(event, &five, 8) == 8, "%m");
  struct itimerspec at_once = {.it_value = {0, 1}};
  CHECK(!timerfd_settime(far_timer, 0, &at_once, 0), "%m");
  for (int i = 0; i < number; i++) {
    if (ends_by_signal(sleepers[i].call->sleep)) pthread_kill(sleepers[i].thread, SIGUSR1);
    if (sleepers[i].call->sleep == in_signalfd) kill(getpid(), SIGRTMIN + 7);
    if (sleepers[i].call->sleep == in_sigwait) kill(getpid(), SIGRTMIN + 8);
    if (sleepers[i].call->sleep == in_write)
      for (int left = 40 * 4096; left > 0;) {
        ssize_t got = read(full[0], text, sizeof text);
        CHECK(got > 0, "%m");
        left -= got;
      }
  }
}

// All threads that have not ended are asleep.
static void all_asleep(void) {
  for (int i = 0; i < number; i++)
    while (!sleepers[i].ended && !asleep(sleepers[i].tid)) sched_yield();
}

static void choose(const char *word) {
  for (int i = 0; i < MOST; i++) {
    const struct call *call = i < TIMED ? &timed[i] : &untimed[i - TIMED];
    int all = !strcmp(word, "timed") ? i < TIMED : !strcmp(word, "untimed") ? i >= TIMED : 0;
    if (all || (!strcmp(word, "restartable") && call->restartable)) sleepers[number++].call = call;
  }
}

int main(int argc, char **argv) {
  sigset_t set;
  sigfillset(&set);
  // Only the main thread, which sleeps in pthread_join, takes the signal that asks for a checkpoint.
  sigdelset(&set, SIGTSTP);
  sigprocmask(SIG_SETMASK, &set, 0);
  CHECK(argc == 2, "usage: sleeps timed|untimed|restartable");
  choose(argv[1]);
  CHECK(number > 0, "no calls %s", argv[1]);
  prepare();
  for (int i = 0; i < number; i++) CHECK(!pthread_create(&sleepers[i].thread, 0, run, &sleepers[i]), "%m");
  for (int i = 0; i < number; i++)
    while (!sleepers[i].tid) sched_yield();
  all_asleep();
  say("ready\n");
  for (int i = 0; i < number; i++)
    if (sleepers[i].call < timed + TIMED && sleepers[i].call >= timed) pthread_join(sleepers[i].thread, 0);
  say("over\n");
  char line[16];
  hear(line, sizeof line);
  wake();
  for (int i = 0; i < number; i++)
    if (sleepers[i].call < timed || sleepers[i].call >= timed + TIMED) pthread_join(sleepers[i].thread, 0);
  if (semaphores) semctl(semaphores, 0, IPC_RMID);
  if (messages) msgctl(messages, IPC_RMID, 0);
  if (*lock_path) unlink(lock_path);
  return 0;
}
