/* ckpt.h - checkpoints of this program, by itself. Link with -lckpt.
 *
 * Except where it is said otherwise, functions return 0, or -1 with errno set and nothing done;
 * all of them may be called by any thread at any time. "Async-signal-safe" ones may be called in
 * signal handlers too. ENOSYS: there is no room for ckpt in this process, or the library is not
 * there (see CKPT_OPTIONAL).
 *
 * With CKPT_OPTIONAL defined before the #include, the program need not be linked with -lckpt: it
 * also runs without the library, where every function fails with ENOSYS (ckpt_fds gives NULL), and
 * finds the functions when libckpt.so is preloaded.
 */
#ifndef CKPT_H
#define CKPT_H

#include <stddef.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Callbacks. Each kind has room for 1024. For a checkpoint by ckpt_ckpt they are called by the
 * thread that calls it, in ordinary context. For one that a signal, `ckpt save` or -z has asked
 * for they are called as in a signal handler (mostly of the main thread) with all signals blocked,
 * and may call async-signal-safe functions only. ENOMEM: too many. Async-signal-safe. */

/* Calls f(arg) before a checkpoint begins, in the order of registration. */
int ckpt_on_preckpt(void (*f)(void *), void *arg);
/* Calls f(arg) when a checkpoint is sealed and the program goes on, in the order of registration;
 * not after one that failed. */
int ckpt_on_postckpt(void (*f)(void *), void *arg);
/* Calls f(arg) in a restarted process before control returns to the program, in the reverse of the
 * order of registration. Open files can still be changed then: see ckpt_fds. */
int ckpt_on_restart(void (*f)(void *), void *arg);

/* Configuration. */

#define CKPT_MAXNAME 4096 /* bytes of a name with its final NUL */

/* Bits of flags. */
#define CKPT_NAME 1
#define CKPT_ASYNCSIG 2
#define CKPT_CONTINUE 4
#define CKPT_MSPERIOD 8

struct ckptconfig {
	int flags;               /* which of the following to change */
	char name[CKPT_MAXNAME]; /* FILENAME, file://FILENAME, ...; relative to the directory now */
	unsigned int asyncsig;   /* the signal that asks for a checkpoint; 0: none */
	unsigned int continues;  /* 1: the program goes on after a checkpoint; 0: it ends */
	unsigned int msperiod;   /* milliseconds between periodic checkpoints; 0: none */
};

/* Copies the configuration to old, then takes over what cfg->flags names. Either may be NULL.
 * EINVAL: a value cannot be (ckpt_info says which); nothing is changed then. */
int ckpt_config(struct ckptconfig *cfg, struct ckptconfig *old);

/* Checkpoints. */

/* Takes a checkpoint, named name or (NULL) as configured, and waits until it is sealed.
 * Returns 0 after it, 1 in a restarted process, -1 when there is none: errno and ckpt_info say why
 * and the program is unharmed. Without CKPT_CONTINUE the program ends as by _exit(2) when the
 * checkpoint is sealed, and only the restarted process returns. EDEADLK: called by a callback. */
int ckpt_ckpt(const char *name);
/* Becomes the program in the checkpoint name. Returns only if that is not there (ENOENT, EACCES) or
 * cannot be resumed (EINVAL): -1. */
int ckpt_restart(const char *name);

/* Descriptors. */

/* Treatments. */
#define CKPT_FD_IGNORE 0
#define CKPT_FD_RESTORE 1

/* Types. */
#define CKPT_FD_REGULAR 1   /* a regular file: u.reg */
#define CKPT_FD_DIRECTORY 2 /* a directory */
#define CKPT_FD_TERMINAL 3  /* a terminal */
#define CKPT_FD_DEVICE 4    /* another device */
#define CKPT_FD_PIPE 5      /* a pipe or FIFO */
#define CKPT_FD_SOCKET 6    /* a socket */
#define CKPT_FD_UNNAMED 7   /* a deleted file, or one that never had a name */
#define CKPT_FD_OTHER 8     /* epoll, eventfd, ... */

struct regular {
	char *path;   /* absolute; malloc'ed */
	int mode;     /* flags for open(2): O_RDONLY, O_APPEND, ... */
	off_t offset; /* in bytes from the start */
};

struct ckptfd {
	int fd;        /* number */
	int treatment; /* CKPT_FD_RESTORE or CKPT_FD_IGNORE */
	int type;      /* CKPT_FD_... */
	union {
		struct regular *reg; /* CKPT_FD_REGULAR; else NULL */
	} u;
};

struct ckptfdtbl {
	unsigned nfd;       /* how many */
	struct ckptfd *fds; /* in no defined order */
};

/* The descriptors of this process; to be called in callbacks, valid until the next call or the end
 * of the checkpoint or restart. What callbacks change holds when the process is restarted, after
 * the restart callbacks: ignored descriptors are closed, regular files opened as path, mode (add
 * O_CREAT to create) and offset then say. To change path, free it and put malloc'ed memory there.
 * Where a file cannot be opened, or CKPT_FD_RESTORE is asked for what ckpt cannot restore, the
 * restart ends with a sentence and status 125. NULL: no memory. Not async-signal-safe (malloc). */
struct ckptfdtbl *ckpt_fds(void);

/* Memory. */

/* Leaves the whole pages in len bytes from addr out of checkpoints: in a restarted process they are
 * zeros. At most 128 ranges at a time (ENOMEM). EINVAL: len is 0 or too long. Async-signal-safe. */
int ckpt_exclude(void *addr, size_t len);
/* Has len bytes from addr in checkpoints again. Errors as ckpt_exclude. Async-signal-safe. */
int ckpt_include(void *addr, size_t len);

/* Critical sections. */

/* Until the matching ckpt_release no checkpoint is taken but by ckpt_ckpt; one that is asked for
 * meanwhile is taken at the last release. Calls nest. Async-signal-safe. */
int ckpt_hold(void);
/* EPERM: there is no hold. */
int ckpt_release(void);

/* State. */

struct ckptinfo {
	unsigned long generation; /* checkpoints so far, those before restarts too */
	int restarted;            /* 1 in a restarted process */
	char error[512];          /* the last error as text; "": none yet */
};

/* Fills info. EINVAL: info is NULL. Async-signal-safe. */
int ckpt_info(struct ckptinfo *info);

#ifdef CKPT_OPTIONAL
#include <errno.h>
#pragma weak ckpt_on_preckpt
#pragma weak ckpt_on_postckpt
#pragma weak ckpt_on_restart
#pragma weak ckpt_config
#pragma weak ckpt_ckpt
#pragma weak ckpt_restart
#pragma weak ckpt_fds
#pragma weak ckpt_exclude
#pragma weak ckpt_include
#pragma weak ckpt_hold
#pragma weak ckpt_release
#pragma weak ckpt_info
#define CKPT_OR(f, call) (f ? (call) : (errno = ENOSYS, -1))
static inline int ckpt_or_on_preckpt(void (*f)(void *), void *arg)
{ return CKPT_OR(ckpt_on_preckpt, ckpt_on_preckpt(f, arg)); }
static inline int ckpt_or_on_postckpt(void (*f)(void *), void *arg)
{ return CKPT_OR(ckpt_on_postckpt, ckpt_on_postckpt(f, arg)); }
static inline int ckpt_or_on_restart(void (*f)(void *), void *arg)
{ return CKPT_OR(ckpt_on_restart, ckpt_on_restart(f, arg)); }
static inline int ckpt_or_config(struct ckptconfig *cfg, struct ckptconfig *old)
{ return CKPT_OR(ckpt_config, ckpt_config(cfg, old)); }
static inline int ckpt_or_ckpt(const char *name) { return CKPT_OR(ckpt_ckpt, ckpt_ckpt(name)); }
static inline int ckpt_or_restart(const char *name)
{ return CKPT_OR(ckpt_restart, ckpt_restart(name)); }
static inline struct ckptfdtbl *ckpt_or_fds(void)
{ if (ckpt_fds) return ckpt_fds(); errno = ENOSYS; return NULL; }
static inline int ckpt_or_exclude(void *addr, size_t len)
{ return CKPT_OR(ckpt_exclude, ckpt_exclude(addr, len)); }
static inline int ckpt_or_include(void *addr, size_t len)
{ return CKPT_OR(ckpt_include, ckpt_include(addr, len)); }
static inline int ckpt_or_hold(void) { return CKPT_OR(ckpt_hold, ckpt_hold()); }
static inline int ckpt_or_release(void) { return CKPT_OR(ckpt_release, ckpt_release()); }
static inline int ckpt_or_info(struct ckptinfo *info)
{ return CKPT_OR(ckpt_info, ckpt_info(info)); }
#undef CKPT_OR
#define ckpt_on_preckpt ckpt_or_on_preckpt
#define ckpt_on_postckpt ckpt_or_on_postckpt
#define ckpt_on_restart ckpt_or_on_restart
#define ckpt_config ckpt_or_config
#define ckpt_ckpt ckpt_or_ckpt
#define ckpt_restart ckpt_or_restart
#define ckpt_fds ckpt_or_fds
#define ckpt_exclude ckpt_or_exclude
#define ckpt_include ckpt_or_include
#define ckpt_hold ckpt_or_hold
#define ckpt_release ckpt_or_release
#define ckpt_info ckpt_or_info
#endif

#ifdef __cplusplus
}
#endif

#endif
