// SPDX-License-Identifier: LGPL-2.1-only
// A program that has the whole terminal, as editors do: it reads keys as they are pressed, and paints when the size of the
// terminal is another than before.
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

static struct winsize size;
static volatile sig_atomic_t resized, continued;

static void on_signal(int number) {
  if (number == SIGWINCH) resized = 1; else continued = 1;
}

static void paint(void) {
  struct winsize now;
  if (ioctl(0, TIOCGWINSZ, &now) || !memcmp(&now, &size, sizeof now)) return;
  size = now;
  dprintf(1, "painted %dx%d\r\n", size.ws_col, size.ws_row);
}

int main(void) {
  struct termios before, mine, now;
  if (tcgetattr(0, &before)) return 2;
  mine = before;
  mine.c_iflag &= ~(ICRNL | IXON);
  mine.c_lflag &= ~(ICANON | ECHO | IEXTEN);
  mine.c_cc[VINTR] = 7;
  if (tcsetattr(0, TCSAFLUSH, &mine) || tcgetattr(0, &mine)) return 3;
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  sigprocmask(SIG_BLOCK, &all, 0);      // but while it waits
  struct sigaction action = {.sa_handler = on_signal};
  sigaction(SIGWINCH, &action, 0);
  sigaction(SIGCONT, &action, 0);
  paint();
  dprintf(1, "pid %d ready\r\n", getpid());
  for (;;) {
    struct pollfd keys = {.events = POLLIN};
    char key = 0;
    long got = ppoll(&keys, 1, 0, &none) > 0 ? read(0, &key, 1) : -1;
    if (resized) resized = 0, paint();
    if (continued) continued = 0, dprintf(1, "continued\r\n");
    if (got == 1 && key == 'm') {
      int same = !tcgetattr(0, &now) && !memcmp(&now, &mine, sizeof now);
      dprintf(1, "modes %s\r\n", same ? "ok" : "wrong");
    }
    if (got == 0 || key == 'q') break;
  }
  tcsetattr(0, TCSAFLUSH, &before);
  return 0;
}
