// SPDX-License-Identifier: LGPL-2.1-only
/* Calls of the C API. The first argument names the part; each prints what the test expects. */
#define _GNU_SOURCE
#include <ckpt.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(c) do { if (!(c)) { \
	printf("line %d: %s (errno %d)\n", __LINE__, #c, errno); fflush(stdout); exit(1); } } while (0)

static void say(const char *text) { printf("%s\n", text); fflush(stdout); }

static void hear(void) { char line[80]; if (!fgets(line, sizeof line, stdin)) exit(2); }

static void go_on(void)
{
	struct ckptconfig cfg = { .flags = CKPT_CONTINUE, .continues = 1 };
	CHECK(ckpt_try_config(&cfg, NULL) == 0);
}

static char *last_error(void)
{
	static struct ckptinfo info;
	CHECK(ckpt_info(&info) == 0);
	return info.error;
}

static void config(void)
{
	static struct ckptconfig first, cfg, old;
	CHECK(ckpt_try_config(NULL, NULL) == 0);
	CHECK(ckpt_try_config(NULL, &first) == 0);
	CHECK(first.name[0] == '/');
	cfg.flags = CKPT_NAME | CKPT_ASYNCSIG;
	strcpy(cfg.name, "file://named.ckpt");
	cfg.asyncsig = SIGUSR1;
	cfg.continues = 1;
	CHECK(ckpt_try_config(&cfg, &old) == 0);
	CHECK(strcmp(old.name, first.name) == 0);
	CHECK(ckpt_try_config(NULL, &old) == 0);
	CHECK(old.name[0] == '/' && strstr(old.name, "/named.ckpt"));
	CHECK(old.asyncsig == SIGUSR1 && old.continues == first.continues);
	struct sigaction action;
	CHECK(sigaction(SIGTSTP, NULL, &action) == 0 && action.sa_handler == SIG_DFL);
	CHECK(sigaction(SIGUSR1, NULL, &action) == 0 && action.sa_handler != SIG_DFL);
	unsigned bad[][2] = { { CKPT_ASYNCSIG, SIGKILL }, { CKPT_ASYNCSIG, 65 }, { CKPT_CONTINUE, 2 } };
	for (int i = 0; i < 3; i++) {
		cfg.flags = bad[i][0] | CKPT_MSPERIOD;
		cfg.asyncsig = cfg.continues = bad[i][1];
		cfg.msperiod = 77;
		CHECK(ckpt_try_config(&cfg, NULL) == -1 && errno == EINVAL && *last_error());
	}
	const char *names[] = { "", "dir/", "ftp://host/x", ".." };
	for (int i = 0; i < 4; i++) {
		cfg.flags = CKPT_NAME;
		strcpy(cfg.name, names[i]);
		CHECK(ckpt_try_config(&cfg, NULL) == -1 && errno == EINVAL);
	}
	memset(cfg.name, 'x', sizeof cfg.name);
	CHECK(ckpt_try_config(&cfg, NULL) == -1 && errno == EINVAL);
	static struct ckptconfig now;
	CHECK(ckpt_try_config(NULL, &now) == 0 && memcmp(&now, &old, sizeof now) == 0);
	cfg.flags = CKPT_ASYNCSIG;
	cfg.asyncsig = 0;
	CHECK(ckpt_try_config(&cfg, NULL) == 0);
	CHECK(sigaction(SIGUSR1, NULL, &action) == 0 && action.sa_handler == SIG_DFL);
	say("ok");
}

static long seen[3][400];
static int count[3];
static void before(void *arg) { seen[0][count[0]++] = (long)arg; }
static void after(void *arg)
{
	CHECK(access("order.ckpt", X_OK) == 0); /* It is sealed. */
	seen[1][count[1]++] = (long)arg;
}
static void again(void *arg) { seen[2][count[2]++] = (long)arg; free(malloc(100)); }

static void order(void)
{
	go_on();
	for (long i = 0; i < 300; i++) {
		CHECK(ckpt_try_on_preckpt(before, (void *)i) == 0);
		CHECK(ckpt_try_on_postckpt(after, (void *)i) == 0);
		CHECK(ckpt_try_on_restart(again, (void *)i) == 0);
	}
	int result = ckpt_ckpt("order.ckpt");
	CHECK(result == 0 || result == 1);
	CHECK(access("order.ckpt", X_OK) == 0);
	CHECK(count[0] == 300 && count[1 + result] == 300 && count[2 - result] == 0);
	for (long i = 0; i < 300; i++)
		CHECK(seen[0][i] == i && seen[1 + result][i] == (result ? 299 - i : i));
	struct ckptinfo info;
	CHECK(ckpt_info(&info) == 0);
	CHECK(info.restarted == result && info.generation == 1);
	say(result ? "restarted" : "saved");
}

static void recursive(void *arg) { *(int *)arg = ckpt_ckpt(NULL) == -1 && errno == EDEADLK; }

static void errors(void)
{
	go_on();
	errno = 0;
	CHECK(ckpt_ckpt("/no/such/directory/x") == -1 && errno == ENOENT);
	CHECK(strstr(last_error(), "/no/such/directory"));
	CHECK(ckpt_ckpt("ftp://x/y") == -1 && errno == EINVAL);
	CHECK(ckpt_try_restart("missing.ckpt") == -1 && errno == ENOENT);
	CHECK(ckpt_try_restart("/bin/sh") == -1 && errno == EINVAL);
	CHECK(ckpt_try_restart(NULL) == -1 && errno == EINVAL);
	CHECK(ckpt_info(NULL) == -1 && errno == EINVAL);
	CHECK(ckpt_release() == -1 && errno == EPERM);
	CHECK(ckpt_exclude(&errno, 0) == -1 && errno == EINVAL);
	CHECK(ckpt_include((void *)-4096, 8192) == -1 && errno == EINVAL);
	for (int i = 0; i < 128; i++)
		CHECK(ckpt_exclude((void *)(0x10000L * (i + 1)), 4096) == 0);
	CHECK(ckpt_exclude((void *)0x10000L, 4096) == -1 && errno == ENOMEM);
	CHECK(ckpt_include((void *)0x10000L, 128 * 0x10000L) == 0);
	CHECK(ckpt_exclude((void *)0x10000L, 4096) == 0);
	CHECK(ckpt_try_on_preckpt(NULL, NULL) == -1 && errno == EINVAL);
	int refused = 0;
	CHECK(ckpt_try_on_preckpt(recursive, &refused) == 0);
	CHECK(ckpt_ckpt(NULL) == 0 && refused);
	for (int i = 0; i < 1024; i++)
		CHECK(ckpt_try_on_restart(again, NULL) == 0);
	CHECK(ckpt_try_on_restart(again, NULL) == -1 && errno == ENOMEM);
	say("ok");
}

static struct ckptfd *find(int fd)
{
	struct ckptfdtbl *table = ckpt_fds();
	CHECK(table);
	for (unsigned i = 0; i < table->nfd; i++)
		if (table->fds[i].fd == fd)
			return &table->fds[i];
	return NULL;
}

static int file, other, pair[2];
static void redirect(void *arg)
{
	/* Does not get the number of the file that is gone. */
	CHECK(open("/dev/zero", O_RDONLY) != file);
	struct ckptfd *row = find(file);
	CHECK(row && row->type == CKPT_FD_REGULAR && row->treatment == CKPT_FD_RESTORE);
	CHECK(strstr(row->u.reg->path, "/out.txt") && row->u.reg->offset == 7);
	CHECK((row->u.reg->mode & O_ACCMODE) == O_WRONLY);
	free(row->u.reg->path);
	row->u.reg->path = strdup(arg);
	row->u.reg->mode |= O_CREAT;
	row->u.reg->offset = 2;
	/* A later callback sees what this one has changed. */
	CHECK(strcmp(find(file)->u.reg->path, arg) == 0);
}
static void ignore(void *arg) { find(*(int *)arg)->treatment = CKPT_FD_IGNORE; }
static void demand(void *arg) { find(*(int *)arg)->treatment = CKPT_FD_RESTORE; }

static void files(const char *part)
{
	file = open("out.txt", O_WRONLY | O_CREAT | O_TRUNC, 0644);
	other = open("other.txt", O_RDWR | O_CREAT, 0644);
	CHECK(write(file, "before\n", 7) == 7);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	if (!strcmp(part, "redirect"))
		ckpt_on_restart(redirect, "new.txt");
	if (!strcmp(part, "early"))
		ckpt_on_preckpt(redirect, "new.txt");
	if (!strcmp(part, "ignore"))
		ckpt_on_preckpt(ignore, &other);
	if (!strcmp(part, "late"))
		ckpt_on_restart(ignore, &other);
	if (!strcmp(part, "demand"))
		ckpt_on_preckpt(demand, &pair[0]);
	if (!strcmp(part, "nothing"))
		ckpt_on_restart(again, NULL);
	if (!strcmp(part, "post") || !strcmp(part, "reused")) {
		/* What is set after one checkpoint holds for the next, and for the same file only. */
		ckpt_on_postckpt(ignore, &other);
		go_on();
		CHECK(ckpt_ckpt("first.ckpt") == 0);
		struct ckptconfig cfg = { .flags = CKPT_CONTINUE, .continues = 0 };
		ckpt_config(&cfg, NULL);
		if (!strcmp(part, "reused"))
			CHECK(dup2(open("third.txt", O_RDWR | O_CREAT, 0644), other) == other);
	}
	if (!strcmp(part, "signal")) {
		ckpt_on_restart(redirect, "new.txt");
		CHECK(raise(SIGTSTP) == 0);
	} else {
		CHECK(ckpt_ckpt("files.ckpt") == 1);
	}
	CHECK(write(file, "after\n", 6) == 6);
	say(fcntl(other, F_GETFD) < 0 ? "closed" : "open");
}

static void types(void *arg)
{
	(void)arg;
	int fds[] = { 0, open("/", O_RDONLY), open("/dev/null", O_RDWR), open("/dev/ptmx", O_RDWR), 0, 0,
		open(".", O_TMPFILE | O_RDWR, 0600) };
	int want[] = { CKPT_FD_PIPE, CKPT_FD_DIRECTORY, CKPT_FD_DEVICE, CKPT_FD_TERMINAL, CKPT_FD_SOCKET,
		CKPT_FD_OTHER, CKPT_FD_UNNAMED };
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	fds[4] = pair[0];
	fds[5] = epoll_create1(0);
	CHECK(find(pair[0])->treatment == CKPT_FD_IGNORE && find(fds[5])->treatment == CKPT_FD_RESTORE);
	for (int i = 0; i < 7; i++)
		if (fds[i] >= 0)
			CHECK(find(fds[i]) && find(fds[i])->type == want[i] && !find(fds[i])->u.reg);
}

static char scratch[64 * 4096] __attribute__((aligned(4096)));
static void excluded(void)
{
	memset(scratch, 'x', sizeof scratch);
	CHECK(ckpt_exclude(scratch, sizeof scratch) == 0);
	CHECK(ckpt_include(scratch + 8 * 4096, 2 * 4096) == 0);
	CHECK(ckpt_ckpt("excluded.ckpt") == 1);
	for (int i = 0; i < 64; i++)
		CHECK(scratch[i * 4096 + 9] == (i == 8 || i == 9 ? 'x' : 0));
	say("zeros");
}

static void held(void)
{
	CHECK(ckpt_hold() == 0 && ckpt_hold() == 0);
	say("held");
	hear();
	CHECK(access("held.ckpt", F_OK) < 0);
	CHECK(ckpt_release() == 0);
	CHECK(access("held.ckpt", F_OK) < 0);
	say("still");
	hear();
	CHECK(ckpt_release() == 0);
	say("released");
	hear();
}

static pthread_t main_thread;
static volatile int calls[3];
static void outside(void *arg)
{
	CHECK(pthread_equal(pthread_self(), main_thread));
	/* What the ABI promises of the stack, and SSE relies on. */
	volatile char aligned[16] __attribute__((aligned(16)));
	CHECK(((unsigned long)aligned & 15) == 0);
	calls[(long)arg]++;
}

static void wait_outside(void)
{
	main_thread = pthread_self();
	ckpt_on_preckpt(outside, (void *)0);
	ckpt_on_postckpt(outside, (void *)1);
	ckpt_on_restart(outside, (void *)2);
	say("ready");
	for (;;) {
		hear();
		printf("%d %d %d\n", calls[0], calls[1], calls[2]);
		fflush(stdout);
	}
}

static volatile int stop;
static void *compute(void *arg)
{
	volatile unsigned long *sum = arg;
	while (!stop)
		for (int i = 0; i < 1000; i++)
			*sum = *sum * 6364136223846793005UL + 1;
	return NULL;
}
static void *save(void *arg)
{
	*(int *)arg = ckpt_ckpt("threads.ckpt");
	return NULL;
}
static void threads(void)
{
	go_on();
	static unsigned long sums[20];
	pthread_t ids[20], saver;
	int result = -2;
	for (int i = 0; i < 20; i++)
		CHECK(pthread_create(&ids[i], NULL, compute, &sums[i]) == 0);
	CHECK(pthread_create(&saver, NULL, save, &result) == 0);
	CHECK(pthread_join(saver, NULL) == 0);
	unsigned long now = *(volatile unsigned long *)&sums[0];
	while (*(volatile unsigned long *)&sums[0] == now)
		;
	stop = 1;
	for (int i = 0; i < 20; i++)
		CHECK(pthread_join(ids[i], NULL) == 0);
	CHECK(result == 0 || result == 1);
	say(result ? "restarted" : "saved");
}

static void restart(void)
{
	static volatile int round;
	if (!strcmp(getenv("ROUND") ? getenv("ROUND") : "", "2")) {
		CHECK(ckpt_try_restart("file://round.ckpt") == -1);
		exit(3);
	}
	go_on();
	round = 1;
	int result = ckpt_ckpt("round.ckpt");
	if (result == 0) {
		round = 2;
		ckpt_restart("round.ckpt");
		CHECK(0);
	}
	CHECK(result == 1 && round == 1);
	say("round");
}

static void forked(void)
{
	say("parent");
	pid_t child = fork();
	if (child == 0) {
		raise(SIGTSTP);
		say("child restarted");
		_exit(0);
	}
	int status;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	char name[CKPT_MAXNAME + 20];
	static struct ckptconfig cfg;
	CHECK(ckpt_try_config(NULL, &cfg) == 0);
	snprintf(name, sizeof name, "%s.%d", cfg.name, child);
	printf("%s\n", strrchr(name, '/') + 1);
	CHECK(access(name, X_OK) == 0);
}

int main(int argc, char **argv)
{
	const char *part = argc > 1 ? argv[1] : "";
	if (!strcmp(part, "config")) config();
	else if (!strcmp(part, "order")) order();
	else if (!strcmp(part, "errors")) errors();
	else if (!strcmp(part, "types")) { types(NULL); say("ok"); }
	else if (!strcmp(part, "excluded")) excluded();
	else if (!strcmp(part, "held")) held();
	else if (!strcmp(part, "outside")) wait_outside();
	else if (!strcmp(part, "threads")) threads();
	else if (!strcmp(part, "restart")) restart();
	else if (!strcmp(part, "forked")) forked();
	else if (!strcmp(part, "absent")) {
		static struct ckptconfig cfg;
		static struct ckptinfo info;
		int results[] = { ckpt_ckpt(NULL), ckpt_try_config(NULL, &cfg), ckpt_try_restart("x"),
			ckpt_try_on_preckpt(before, NULL), ckpt_try_on_postckpt(after, NULL),
			ckpt_try_on_restart(again, NULL), ckpt_exclude(&cfg, 1), ckpt_include(&cfg, 1),
			ckpt_hold(), ckpt_release(), ckpt_info(&info) };
		for (unsigned i = 0; i < sizeof results / sizeof *results; i++)
			CHECK(results[i] == -1);
		CHECK(ckpt_ckpt(NULL) == -1 && errno == ENOSYS);
		errno = 0;
		CHECK(!ckpt_fds() && errno == ENOSYS);
		errno = 0;
		ckpt_config(&cfg, NULL);
		CHECK(errno == ENOSYS);
		ckpt_on_preckpt(before, NULL);
		ckpt_on_postckpt(after, NULL);
		ckpt_on_restart(again, NULL);
		ckpt_restart("x");
		say("absent");
	} else files(part);
	return 0;
}
