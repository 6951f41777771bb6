// SPDX-License-Identifier: LGPL-2.1-only
// served NAME: saves itself to a checkpoint server, goes on, and becomes what it has saved.
#include <ckpt.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	static volatile int round = 1;
	if (argc != 2)
		return 2;
	int result = ckpt_ckpt(argv[1]);
	if (result == 0) {
		puts("saved");
		fflush(stdout);
		round = 2;
		ckpt_restart(argv[1]);
		return 3;
	}
	if (result != 1 || round != 1) {
		struct ckptinfo info;
		ckpt_info(&info);
		fprintf(stderr, "%d: %s\n", result, info.error);
		return 4;
	}
	puts("restarted");
	return 0;
}
