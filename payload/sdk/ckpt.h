/* SPDX-License-Identifier: LGPL-2.1-only */
/* ckpt.h - checkpoints of this program, by itself. Link with -lckpt.
 *
 * Except where it is said otherwise, functions return 0, or -1 with errno set and nothing done; the
 * text of the last error is in ckpt_info. Those that are void, as the manual of the original
 * declares them, write it on standard error; each has a twin, ckpt_try_..., that returns it.
 *
 * All may be called by any thread at any time. Those that are "async-signal-safe" may be called in
 * signal handlers, and no others. ENOSYS: there is no room for ckpt in this process, or the library
 * is not there (see CKPT_OPTIONAL).
 *
 * With CKPT_OPTIONAL defined before the #include, the program need not be linked with -lckpt: it
 * also runs without the library, where every function fails with ENOSYS (ckpt_fds gives NULL, the
 * void ones set errno), and finds the functions when libckpt.so is preloaded.
 */
#ifndef CKPT_H
#define CKPT_H

#include <stddef.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Callbacks, of which each kind has room for 1024.
 *
 * For a checkpoint by ckpt_ckpt the thread that calls it calls them, in ordinary context: they may
 * use any function. For one that a signal, `ckpt save` or -z has asked for they are called as in a
 * signal handler (of the main thread, or of the one that the signal met) with all signals blocked,
 * and may use async-signal-safe functions only. Other threads run meanwhile.
 *
 * ENOMEM: too many. EINVAL: f is NULL. Async-signal-safe. */

/* Calls f(arg) before a checkpoint begins, in the order of registration. */
void ckpt_on_preckpt(void (*f)(void *), void *arg);
int ckpt_try_on_preckpt(void (*f)(void *), void *arg);
/* Calls f(arg) when a checkpoint is sealed and the program goes on, in the order of registration;
 * not after one that failed. */
void ckpt_on_postckpt(void (*f)(void *), void *arg);
int ckpt_try_on_postckpt(void (*f)(void *), void *arg);
/* Calls f(arg) in a restarted process before control returns to the place of the checkpoint, in the
 * reverse of the order of registration. Open files can still be changed then: see ckpt_fds. */
void ckpt_on_restart(void (*f)(void *), void *arg);
int ckpt_try_on_restart(void (*f)(void *), void *arg);

/* Configuration. */

#define CKPT_MAXNAME 4096 /* bytes of a name with its final NUL */

/* Bits of flags. */
#define CKPT_NAME 1
#define CKPT_ASYNCSIG 2
#define CKPT_CONTINUE 4
#define CKPT_MSPERIOD 8

struct ckptconfig {
	int flags;               /* which of the following to change */
	char name[CKPT_MAXNAME]; /* as for ckpt -n; relative to the directory now */
	unsigned int asyncsig;   /* the signal that asks for a checkpoint; 0: none */
	unsigned int continues;  /* 1: the program goes on after a checkpoint; 0: it ends */
	unsigned int msperiod;   /* milliseconds between periodic checkpoints; 0: none */
};

/* Copies the configuration to old, then takes over what cfg->flags names. Either may be NULL.
 * EINVAL: a value cannot be (the text says which); nothing is changed then. */
void ckpt_config(struct ckptconfig *cfg, struct ckptconfig *old);
int ckpt_try_config(struct ckptconfig *cfg, struct ckptconfig *old);

/* Checkpoints. */

/* Takes a checkpoint, named name or (NULL) as configured, and waits until it is sealed.
 * Returns 0 after it, 1 in a restarted process, -1 when there is none: errno and ckpt_info say why
 * and the program is unharmed. Without CKPT_CONTINUE the program ends as by _exit(2) when the
 * checkpoint is sealed, and only the restarted process returns. EDEADLK: called by a callback. */
int ckpt_ckpt(const char *name);
/* Becomes the program in the checkpoint name; with %n in it, the one with the highest number.
 * Returns only if that is not there (ENOENT, EACCES) or cannot be restarted (EINVAL): -1. */
void ckpt_restart(const char *name);
int ckpt_try_restart(const char *name);

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
 * of the checkpoint or restart. NULL: no memory. Not async-signal-safe (malloc).
 *
 * What callbacks change holds when the process is restarted, after the restart callbacks: ignored
 * descriptors are closed, regular files opened as path, mode (add O_CREAT to create) and offset then
 * say. To change path, free it and put malloc'ed memory there. A treatment stays for later
 * checkpoints, too (so a postckpt callback may set it), as long as the descriptor is the same file.
 *
 * CKPT_FD_IGNORE is the treatment of what ckpt cannot restore: sockets, inotify and the like. Where
 * CKPT_FD_RESTORE is asked for such a one, or a file cannot be opened, the restart ends with a
 * sentence and status 125. */
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

/* What the restart was given with --args and --env (or an earlier one that led here); its --cwd is
 * the working directory by then. The strings stay. A process that none was given has argc 0 and two
 * NULL pointers. */
struct ckptgiven {
	int argc;    /* arguments, without a name of the program before them */
	char **argv; /* these, and a NULL pointer */
	char **env;  /* "NAME=VALUE"s, and a NULL pointer: environ(7) is as it was saved */
};

/* Fills given. EINVAL: given is NULL. Async-signal-safe. */
int ckpt_given(struct ckptgiven *given);

#ifdef CKPT_OPTIONAL
#include <errno.h>
#pragma weak ckpt_on_preckpt
#pragma weak ckpt_try_on_preckpt
#pragma weak ckpt_on_postckpt
#pragma weak ckpt_try_on_postckpt
#pragma weak ckpt_on_restart
#pragma weak ckpt_try_on_restart
#pragma weak ckpt_config
#pragma weak ckpt_try_config
#pragma weak ckpt_restart
#pragma weak ckpt_try_restart
#pragma weak ckpt_ckpt
#pragma weak ckpt_exclude
#pragma weak ckpt_include
#pragma weak ckpt_hold
#pragma weak ckpt_release
#pragma weak ckpt_info
#pragma weak ckpt_given
#pragma weak ckpt_fds
#define CKPT_WEAK_VOID(name, parameters, arguments) \
	static inline void ckpt_or_##name parameters \
	{ if (ckpt_##name) ckpt_##name arguments; else errno = ENOSYS; }
#define CKPT_WEAK(name, parameters, arguments) \
	static inline int ckpt_or_##name parameters \
	{ if (ckpt_##name) return ckpt_##name arguments; errno = ENOSYS; return -1; }
CKPT_WEAK_VOID(on_preckpt, (void (*f)(void *), void *arg), (f, arg))
CKPT_WEAK(try_on_preckpt, (void (*f)(void *), void *arg), (f, arg))
CKPT_WEAK_VOID(on_postckpt, (void (*f)(void *), void *arg), (f, arg))
CKPT_WEAK(try_on_postckpt, (void (*f)(void *), void *arg), (f, arg))
CKPT_WEAK_VOID(on_restart, (void (*f)(void *), void *arg), (f, arg))
CKPT_WEAK(try_on_restart, (void (*f)(void *), void *arg), (f, arg))
CKPT_WEAK_VOID(config, (struct ckptconfig *cfg, struct ckptconfig *old), (cfg, old))
CKPT_WEAK(try_config, (struct ckptconfig *cfg, struct ckptconfig *old), (cfg, old))
CKPT_WEAK_VOID(restart, (const char *name), (name))
CKPT_WEAK(try_restart, (const char *name), (name))
CKPT_WEAK(ckpt, (const char *name), (name))
CKPT_WEAK(exclude, (void *addr, size_t len), (addr, len))
CKPT_WEAK(include, (void *addr, size_t len), (addr, len))
CKPT_WEAK(hold, (void), ())
CKPT_WEAK(release, (void), ())
CKPT_WEAK(info, (struct ckptinfo *info), (info))
CKPT_WEAK(given, (struct ckptgiven *given), (given))
static inline struct ckptfdtbl *ckpt_or_fds(void)
{ if (ckpt_fds) return ckpt_fds(); errno = ENOSYS; return NULL; }
#undef CKPT_WEAK
#undef CKPT_WEAK_VOID
#define ckpt_on_preckpt ckpt_or_on_preckpt
#define ckpt_try_on_preckpt ckpt_or_try_on_preckpt
#define ckpt_on_postckpt ckpt_or_on_postckpt
#define ckpt_try_on_postckpt ckpt_or_try_on_postckpt
#define ckpt_on_restart ckpt_or_on_restart
#define ckpt_try_on_restart ckpt_or_try_on_restart
#define ckpt_config ckpt_or_config
#define ckpt_try_config ckpt_or_try_config
#define ckpt_restart ckpt_or_restart
#define ckpt_try_restart ckpt_or_try_restart
#define ckpt_ckpt ckpt_or_ckpt
#define ckpt_exclude ckpt_or_exclude
#define ckpt_include ckpt_or_include
#define ckpt_hold ckpt_or_hold
#define ckpt_release ckpt_or_release
#define ckpt_info ckpt_or_info
#define ckpt_given ckpt_or_given
#define ckpt_fds ckpt_or_fds
#endif

#ifdef __cplusplus
}
#endif

#endif
