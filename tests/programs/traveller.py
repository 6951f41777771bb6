# SPDX-License-Identifier: LGPL-2.1-only
# Python on another machine: clocks, sleeps, signals, memory, threads, and arithmetic in vector registers.
import math
import queue
import signal
import sys
import threading
import time

asked, answers, caught = queue.Queue(), queue.Queue(), []


def old_thread():
    while True:
        number = asked.get()
        answers.put(math.sqrt(number))


threading.Thread(target=old_thread, daemon=True).start()
signal.signal(signal.SIGALRM, lambda *_: caught.append(1))
table = {n: str(n) for n in range(100000)}
print("ready")
for line in sys.stdin:
    before = time.monotonic()
    time.sleep(0.02)
    assert time.monotonic() - before >= 0.02, "slept too little"
    assert abs(time.time() - time.clock_gettime(time.CLOCK_REALTIME)) < 2, "time() differs"
    # Again and again: a signal between the look and the pause would wake nobody.
    count = len(caught)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.05)
    while len(caught) == count:
        signal.pause()
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert all(table[n] == str(n) for n in range(0, 100000, 997)), "the table differs"
    table[len(table)] = str(len(table))
    asked.put(2.25)
    assert answers.get() == 1.5, "the old thread"
    new = threading.Thread(target=lambda: answers.put(sum(bytearray(1 << 20)) + 7))
    new.start()
    new.join()
    assert answers.get() == 7, "the new thread"
    if line == "go\n":
        break
    print("ok")
