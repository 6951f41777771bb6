// SPDX-License-Identifier: LGPL-2.1-only
/* A program as it was written for the ckpt of 2004, from its manual alone. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/types.h>
#include "ckpt.h"

static void (*const callbacks[])(void (*)(void *), void *) = {
	ckpt_on_preckpt, ckpt_on_postckpt, ckpt_on_restart
};
static void (*const configure)(struct ckptconfig *, struct ckptconfig *) = ckpt_config;
static struct ckptfdtbl *(*const fds)() = ckpt_fds;

static char *names[] = { "pre", "post", "restart" };

static void called(void *arg)
{
	struct ckptfdtbl *table = fds();
	unsigned i;
	for (i = 0; i < table->nfd; i++) {
		struct ckptfd *fd = &table->fds[i];
		if (fd->type == CKPT_FD_REGULAR && fd->treatment == CKPT_FD_RESTORE) {
			struct regular *reg = fd->u.reg;
			printf("%s %s %ld\n", (char *)arg, strrchr(reg->path, '/'), (long)reg->offset);
		} else if (fd->type == CKPT_FD_PIPE && fd->fd > 2) {
			fd->treatment = CKPT_FD_IGNORE;
		}
	}
	fflush(stdout);
}

int main()
{
	struct ckptconfig cfg, old;
	char *name = "original.ckpt";
	FILE *file = fopen("file", "w");
	int i;
	fputs("12345", file);
	fflush(file);
	for (i = 0; i < 3; i++)
		callbacks[i](called, names[i]);
	ckpt_config(NULL, &old);
	cfg.flags = CKPT_CONTINUE | CKPT_ASYNCSIG | CKPT_MSPERIOD;
	cfg.continues = 2;
	cfg.asyncsig = 0;
	cfg.msperiod = 0;
	ckpt_config(&cfg, NULL);
	configure(NULL, &cfg);
	if (cfg.asyncsig != old.asyncsig || cfg.continues != old.continues)
		return 1;
	cfg.flags = CKPT_NAME | CKPT_CONTINUE;
	cfg.continues = 1;
	strncpy(cfg.name, name, CKPT_MAXNAME);
	ckpt_config(&cfg, &old);
	ckpt_ckpt(NULL);
	puts("going on");
	return 0;
}
