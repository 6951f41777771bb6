// SPDX-License-Identifier: LGPL-2.1-only
// aio [MORE]: two rings of asynchronous I/O (io_setup(2)), one that has gone round and holds events that nobody has taken. Each
// look takes them, some from the ring itself as libaio does, and makes new requests. More rings have none.
#include "subject.h"
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <sys/syscall.h>

enum { BLOCK = 4096, MANY = 100, LEFT = 5 };

struct ring {
  unsigned id, nr, head, tail, magic, compat, incompat, length;
  struct io_event events[];
};

static aio_context_t busy, plain;
static int file;
static unsigned long long sent, taken;
static unsigned char blocks[8][BLOCK];

static void request(aio_context_t ring, int count) {
  struct iocb all[8] = {0}, *list[8];
  CHECK(count <= 8, "%d", count);
  for (int i = 0; i < count; i++) {
    memset(blocks[i], (int)(sent % 251), BLOCK);
    all[i] = (struct iocb){.aio_data = sent++, .aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = (unsigned)file};
    all[i].aio_buf = (unsigned long)blocks[i];
    all[i].aio_nbytes = BLOCK, all[i].aio_offset = i * BLOCK;
    list[i] = &all[i];
  }
  CHECK(syscall(SYS_io_submit, ring, count, list) == count, "%m");
}

static void is_next(const struct io_event *event) {
  CHECK(event->data == taken && event->res == BLOCK, "%llu %llu %lld", event->data, taken, event->res);
  taken++;
}

static void take(aio_context_t ring, int count) {
  struct io_event events[8];
  CHECK(syscall(SYS_io_getevents, ring, count, count, events, 0) == count, "%m");
  for (int i = 0; i < count; i++) is_next(events + i);
}

static void look(void) {
  struct ring *ring = (struct ring *)busy;
  CHECK(ring->magic == 0xa10a10a1 && (ring->tail + ring->nr - ring->head) % ring->nr == LEFT, "%u %u", ring->head, ring->tail);
  is_next(ring->events + ring->head);
  ring->head = (ring->head + 1) % ring->nr;
  take(busy, LEFT - 1);
  struct timespec { long s, ns; } none = {0, 0};
  struct io_event event;
  CHECK(syscall(SYS_io_getevents, busy, 0, 1, &event, &none) == 0, "%m");
  for (int i = 0; i < MANY; i++) request(busy, 3), take(busy, 3);
  request(plain, 2), take(plain, 2);
  request(busy, LEFT);
  // As many as it takes are not too many.
  for (unsigned i = 0; i < ring->nr; i++) {
    unsigned long long before = sent;
    sent = taken = 0;
    request(plain, 1), take(plain, 1);
    sent = before, taken = before - LEFT;
  }
}

int main(int argc, char **argv) {
  aio_context_t more = 0;
  for (int i = argc > 1 ? atoi(argv[1]) : 0; i > 0; i--, more = 0) CHECK(!syscall(SYS_io_setup, 1, &more), "%m");
  file = open("blocks", O_RDWR | O_CREAT, 0600);
  CHECK(file >= 0, "%m");
  CHECK(!syscall(SYS_io_setup, 40, &busy) && !syscall(SYS_io_setup, 1, &plain), "%m");
  for (int i = 0; i < MANY; i++) request(busy, 3), take(busy, 3);
  request(busy, LEFT);
  int outcome = obey(look);
  CHECK(!syscall(SYS_io_destroy, busy) && !syscall(SYS_io_destroy, plain), "%m");
  return outcome;
}
