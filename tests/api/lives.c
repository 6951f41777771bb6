// SPDX-License-Identifier: LGPL-2.1-only
/* Programs that live longer: generations, threads, children, periods. The first argument names the
 * part; each prints what the test expects. */
#define _GNU_SOURCE
#include <ckpt.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CHECK(c) do { if (!(c)) { \
	printf("line %d: %s (errno %d)\n", __LINE__, #c, errno); fflush(stdout); exit(1); } } while (0)

static void say(const char *text) { printf("%s\n", text); fflush(stdout); }

static int hear(void) { char line[80]; return fgets(line, sizeof line, stdin) != NULL; }

static void configure(int flags, const char *name, int continues, int msperiod)
{
	struct ckptconfig cfg;
	cfg.flags = flags;
	strcpy(cfg.name, name);
	cfg.continues = continues;
	cfg.msperiod = msperiod;
	CHECK(ckpt_try_config(&cfg, NULL) == 0);
}

static volatile int calls[3];
static void count(void *arg) { calls[(long)arg]++; }
static void count_all(void)
{
	ckpt_on_preckpt(count, (void *)0);
	ckpt_on_postckpt(count, (void *)1);
	ckpt_on_restart(count, (void *)2);
}
static void say_counts(void)
{
	printf("%d %d %d\n", calls[0], calls[1], calls[2]);
	fflush(stdout);
}

/* Each checkpoint ends the program: what goes on is always a restarted process. */
static void generations(void)
{
	struct ckptinfo info;
	count_all();
	for (unsigned long i = 1; i <= 4; i++) {
		CHECK(ckpt_ckpt("life.ckpt") == 1);
		CHECK(ckpt_info(&info) == 0 && info.generation == i && info.restarted == 1);
		CHECK(calls[0] == (int)i && calls[1] == 0 && calls[2] == (int)i);
		printf("generation %lu\n", i);
		fflush(stdout);
	}
}

static void templates(void)
{
	static struct ckptconfig cfg;
	char own[40];
	configure(CKPT_NAME | CKPT_CONTINUE, "part.%n.ckpt", 1, 0);
	CHECK(ckpt_try_config(NULL, &cfg) == 0 && strstr(cfg.name, "/part.%n.ckpt"));
	static volatile int round;
	for (round = 1; round <= 3; round++) {
		int result = ckpt_ckpt(NULL);
		if (result == 1) {
			CHECK(round == 3);
			say("the third");
			return;
		}
		CHECK(result == 0);
		snprintf(own, sizeof own, "part.%d.ckpt", round);
		CHECK(access(own, X_OK) == 0);
	}
	CHECK(ckpt_ckpt("of.%p.ckpt") == 0);
	snprintf(own, sizeof own, "of.%d.ckpt", getpid());
	CHECK(access(own, X_OK) == 0);
	CHECK(ckpt_ckpt("bad.%q.ckpt") == -1 && errno == EINVAL);
	CHECK(ckpt_try_restart("none.%n.ckpt") == -1 && errno == ENOENT);
	ckpt_restart("file://part.%n.ckpt");
	CHECK(0);
}

/* The environment was read when the library was loaded, and never again. */
static void once(void)
{
	static struct ckptconfig cfg;
	CHECK(setenv("CKPT_NAME", "late", 1) == 0);
	CHECK(ckpt_try_config(NULL, &cfg) == 0);
	printf("%s %u %u %u\n", strrchr(cfg.name, '/') + 1, cfg.asyncsig, cfg.continues, cfg.msperiod);
	fflush(stdout);
	CHECK(ckpt_ckpt(NULL) == 0 && access("late", F_OK) < 0);
	CHECK(access("early", X_OK) == 0);
	say("ok");
}

/* What cannot be resumed is found out while the program is still there. */
static void refusals(void)
{
	struct ckptinfo info;
	FILE *file = fopen("needed", "w");
	configure(CKPT_CONTINUE, "", 1, 0);
	CHECK(file && ckpt_ckpt("whole.ckpt") >= 0);
	CHECK(unlink("needed") == 0);
	CHECK(ckpt_try_restart("whole.ckpt") == -1 && errno);
	CHECK(ckpt_info(&info) == 0 && strstr(info.error, "/needed"));
	CHECK(fopen("needed", "w"));
	file = fopen("whole.ckpt", "r+");
	CHECK(file && fseek(file, -3 * 4096, SEEK_END) == 0);
	int byte = fgetc(file);
	CHECK(fseek(file, -3 * 4096, SEEK_END) == 0 && fputc(byte ^ 1, file) >= 0 && fclose(file) == 0);
	CHECK(ckpt_try_restart("whole.ckpt") == -1 && errno == EINVAL);
	ckpt_restart("whole.ckpt");
	CHECK(ckpt_ckpt("whole.ckpt") == 0);
	say("unharmed");
}

static void spawning(void)
{
	printf("%s\n", getenv("LD_PRELOAD") ? getenv("LD_PRELOAD") : "-");
	fflush(stdout);
	CHECK(system("sleep 1000; echo $?") == 0);
}

/* All signals are blocked: a dumper from outside gets through. */
static void blocked(void)
{
	sigset_t all, now;
	count_all();
	sigfillset(&all);
	CHECK(sigprocmask(SIG_SETMASK, &all, NULL) == 0);
	say("ready");
	while (hear()) {
		CHECK(sigprocmask(SIG_SETMASK, NULL, &now) == 0);
		for (int i = 1; i < 32; i++)
			CHECK(i == SIGKILL || i == SIGSTOP || sigismember(&now, i));
		say_counts();
	}
}

/* A filter ends the program for one call. */
static void locked(unsigned call)
{
	/* struct sock_filter, struct sock_fprog (linux/filter.h, which musl has not). */
	struct rule { unsigned short code; unsigned char yes, no; unsigned k; } rules[] = {
		{0x20, 0, 0, 0}, {0x15, 0, 1, call}, {0x06, 0, 0, 0x80000000}, {0x06, 0, 0, 0x7fff0000},
	};
	struct { unsigned short len; struct rule *rules; } filter = {4, rules};
	count_all();
	CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	CHECK(!prctl(PR_SET_SECCOMP, 2, &filter));
	say("ready");
	while (hear()) say_counts();
}

static void periodic(void)
{
	count_all();
	CHECK(ckpt_hold() == 0);
	configure(CKPT_NAME | CKPT_CONTINUE | CKPT_MSPERIOD, "period.ckpt", 1, 20);
	say("held");
	CHECK(hear());
	CHECK(calls[0] == 0 && access("period.ckpt", F_OK) < 0);
	CHECK(ckpt_release() == 0);
	while (calls[1] < 3)
		pause();
	configure(CKPT_MSPERIOD, "", 0, 0);
	say("thrice");
	while (hear())
		say_counts();
}

#define MANY 200
static pthread_barrier_t together;
static int saved;
static volatile int stop;
static __thread char scratch[3 * 4096];

/* Ordinary functions, whose locks others hold and release all the time. */
static void ordinary(void *arg)
{
	char *text = NULL;
	CHECK(asprintf(&text, "%p", malloc(5000)) > 0);
	free(text);
	FILE *file = fopen("/proc/self/stat", "r");
	CHECK(file && fgetc(file) > 0);
	fclose(file);
	calls[(long)arg]++;
}

static void *churn(void *arg)
{
	while (!stop)
		for (int i = 0; i < 100; i++)
			free(malloc(100 + i * 50));
	return arg;
}

static void *one_of_many(void *arg)
{
	struct ckptinfo info;
	long i = (long)arg;
	pthread_barrier_wait(&together);
	for (int round = 0; round < 5; round++) {
		CHECK(ckpt_hold() == 0);
		CHECK(ckpt_try_on_restart(count, (void *)2) == 0);
		if (i < 100) {
			CHECK(ckpt_exclude(scratch, sizeof scratch) == 0);
			CHECK(ckpt_include(scratch, sizeof scratch) == 0);
		}
		CHECK(ckpt_info(&info) == 0);
		CHECK(ckpt_release() == 0);
	}
	if (i < 3)
		configure(CKPT_CONTINUE, "", 1, 0);
	if (i >= 3 && i < 6) {
		CHECK(ckpt_ckpt("many.ckpt") >= 0);
		__atomic_fetch_add(&saved, 1, __ATOMIC_SEQ_CST);
	}
	pthread_barrier_wait(&together);
	while (!stop)
		usleep(1000);
	return NULL;
}

static void many(void)
{
	pthread_t ids[MANY];
	pthread_attr_t attr;
	configure(CKPT_CONTINUE, "", 1, 0);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 256 << 10);
	pthread_barrier_init(&together, NULL, MANY + 1);
	ckpt_on_preckpt(count, (void *)0);
	ckpt_on_postckpt(count, (void *)1);
	for (long i = 0; i < MANY; i++)
		CHECK(pthread_create(&ids[i], &attr, one_of_many, (void *)i) == 0);
	pthread_barrier_wait(&together);
	pthread_barrier_wait(&together);
	CHECK(saved == 3);
	struct ckptinfo info;
	CHECK(ckpt_info(&info) == 0 && info.generation == 3);
	CHECK(calls[0] == 3 && calls[1] == 3 && calls[2] == 0);
	say("ready");
	while (hear())
		say_counts();
	stop = 1;
	for (int i = 0; i < MANY; i++)
		CHECK(pthread_join(ids[i], NULL) == 0);
	say("joined");
}

static void ordinarily(void)
{
	pthread_t ids[8];
	configure(CKPT_CONTINUE, "", 1, 0);
	ckpt_on_preckpt(ordinary, (void *)0);
	ckpt_on_postckpt(ordinary, (void *)1);
	ckpt_on_restart(ordinary, (void *)2);
	for (int i = 0; i < 8; i++)
		CHECK(pthread_create(&ids[i], NULL, churn, NULL) == 0);
	int result = 0;
	for (int i = 0; i < 5 && !result; i++)
		result = ckpt_ckpt("ordinary.ckpt");
	stop = 1;
	for (int i = 0; i < 8; i++)
		CHECK(pthread_join(ids[i], NULL) == 0);
	CHECK(result >= 0);
	CHECK(calls[0] == 5 && calls[1] == 5 - result && calls[2] == result);
	say(result ? "restarted" : "saved");
}

int main(int argc, char **argv)
{
	const char *part = argc > 1 ? argv[1] : "";
	if (!strcmp(part, "generations")) generations();
	else if (!strcmp(part, "templates")) templates();
	else if (!strcmp(part, "once")) once();
	else if (!strcmp(part, "refusals")) refusals();
	else if (!strcmp(part, "spawning")) spawning();
	else if (!strcmp(part, "blocked")) blocked();
	else if (!strcmp(part, "locked")) locked(SYS_futex);
	else if (!strcmp(part, "careful")) locked(SYS_getsid);
	else if (!strcmp(part, "periodic")) periodic();
	else if (!strcmp(part, "many")) many();
	else if (!strcmp(part, "ordinary")) ordinarily();
	else return 3;
	return 0;
}
