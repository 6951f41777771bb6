// SPDX-License-Identifier: LGPL-2.1-only
// left: has memory of which it leaves a half out of checkpoints, at "exclude", and has it in them again at "include". At
// "check" and "go" it compares all of it.
#include <ckpt.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, PAGES = 20000 };

static int say(const char *line)
{
	puts(line);
	return fflush(stdout);
}

int main(void)
{
	char line[64];
	char *memory = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return 2;
	for (size_t page = 0; page < PAGES; page++)
		memset(memory + page * PAGE, (int)(page % 255 + 1), PAGE);
	say("ready");
	while (fgets(line, sizeof line, stdin)) {
		size_t half = (size_t)PAGES / 2 * PAGE;
		if (!strcmp(line, "exclude\n") && ckpt_exclude(memory, half))
			return 3;
		if (!strcmp(line, "include\n") && ckpt_include(memory, half))
			return 4;
		if (!strcmp(line, "check\n") || !strcmp(line, "go\n"))
			for (size_t at = 0; at < (size_t)PAGES * PAGE; at++)
				if ((unsigned char)memory[at] != at / PAGE % 255 + 1)
					return fprintf(stderr, "page %zu is another\n", at / PAGE), 5;
		if (!strcmp(line, "go\n"))
			return 0;
		say("ok");
	}
	return 6;
}
