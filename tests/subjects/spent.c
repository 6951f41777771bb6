// SPDX-License-Identifier: LGPL-2.1-only
// spent: has used 0.6 s of CPU time, by clock(3).
#include "subject.h"
#include <time.h>

static void check(void) {}

int main(void) {
  while (clock() < 6 * CLOCKS_PER_SEC / 10) {}
  return obey(check);
}
