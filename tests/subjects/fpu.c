// SPDX-License-Identifier: LGPL-2.1-only
// Every user register that XSAVE knows holds a pattern while the program waits: in read(2), or with the argument "spin"
// in a loop of its own. The wait is machine code, so that no compiled code touches the registers.
#include "subject.h"
#include <cpuid.h>

enum { X87 = 1, SSE = 2, AVX = 4, AVX512 = 0xe0, PKRU = 0x200 };
static unsigned char before[8192] __attribute__((aligned(64))), after[8192] __attribute__((aligned(64)));
static uint64_t mask;
static int spin;

static uint64_t enabled_components(void) {
  unsigned a, b, c, d;
  __cpuid(1, a, b, c, d);
  if (!(c & bit_OSXSAVE)) return 0;
  __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  return (a | (uint64_t)d << 32) & (X87 | SSE | AVX | AVX512 | PKRU);
}

static void component(int number, unsigned *offset, unsigned *size) {
  unsigned c, d;
  __cpuid_count(0xd, number, *size, *offset, c, d);
}

static void prepare(void) {
  memset(before, 0, sizeof before);
  *(uint16_t *)before = 0x027f;            // FCW: double precision
  before[4] = 0xff;                        // all eight x87 registers are in use
  *(uint32_t *)(before + 24) = 0x5f80;     // MXCSR: round upwards
  for (int i = 0; i < 8; i++) fill(before + 32 + 16 * i, 10, i);
  fill(before + 160, 256, 3);
  *(uint64_t *)(before + 512) = mask;
  for (int i = 2; i < 9; i++) {
    unsigned offset, size;
    if (!(mask >> i & 1)) continue;
    component(i, &offset, &size);
    if (offset) fill(before + offset, size, i);
  }
  if (mask & PKRU) {
    unsigned offset, size;
    component(9, &offset, &size);
    *(uint32_t *)(before + offset) = 0x5555555c;   // key 1: no store either
  }
}

// Loads `before`, waits for one byte on standard input, stores `after`.
static void wait_with_full_registers(void) {
  static char byte;
  static int waiting;
  uint32_t low = (uint32_t)mask;
#define WAIT                                                                   \
  "1: testl %[spin], %[spin]\n jz 3f\n"                                        \
  "movl $100000, %%ecx\n 2: decl %%ecx\n jnz 2b\n"                             \
  "movl $16, %%eax\n xorl %%edi, %%edi\n movl $0x541b, %%esi\n"                \
  "movq %[waiting], %%rdx\n syscall\n" /* ioctl(0, FIONREAD, &waiting) */      \
  "movq %[waiting], %%rdx\n cmpl $0, (%%rdx)\n je 1b\n"                        \
  "3: xorl %%eax, %%eax\n xorl %%edi, %%edi\n movq %[byte], %%rsi\n"           \
  "movl $1, %%edx\n syscall\n"
#define OPERANDS                                                               \
  [spin] "r"(spin), [waiting] "r"(&waiting), [byte] "r"(&byte),                \
      [before] "r"(before), [after] "r"(after), [low] "r"(low)
#define CLOBBERS "rax", "rcx", "rdx", "rdi", "rsi", "r11", "memory", "cc"
  if (mask)
    __asm__ volatile("movl %[low], %%eax\n xorl %%edx, %%edx\n xrstor64 (%[before])\n" WAIT
                     "movl %[low], %%eax\n xorl %%edx, %%edx\n xsave64 (%[after])\n"
                     : : OPERANDS : CLOBBERS);
  else
    __asm__ volatile("fxrstor64 (%[before])\n" WAIT "fxsave64 (%[after])\n" : : OPERANDS : CLOBBERS);
  __asm__ volatile("fninit");
  uint32_t mxcsr = 0x1f80;
  __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
}

static void compare(const char *name, unsigned offset, unsigned size) {
  int same = !memcmp(before + offset, after + offset, size);
  CHECK(same, "%s differs", name);
}

int main(int argc, char **argv) {
  spin = argc > 1 && !strcmp(argv[1], "spin");
  mask = enabled_components();
  char line[64];
  say("ready\n");
  do {
    prepare();
    memset(after, 0, sizeof after);
    wait_with_full_registers();       // takes the line's first byte; "heck" or "o" is left
    hear(line, sizeof line);
    compare("FCW", 0, 2);
    compare("MXCSR", 24, 4);
    for (int i = 0; i < 8; i++) compare("x87 register", 32 + 16 * i, 10);
    compare("XMM registers", 160, 256);
    for (int i = 2; i < 10; i++) {
      static const char *const names[] = {"", "", "YMM", "", "", "k", "ZMM low", "ZMM high", "", "PKRU"};
      unsigned offset, size;
      if (!(mask >> i & 1)) continue;
      component(i, &offset, &size);
      if (offset) compare(names[i], offset, i == 9 ? 4 : size);
    }
    if (strcmp(line, "o")) say("ok\n");
  } while (strcmp(line, "o"));
  return 0;
}
