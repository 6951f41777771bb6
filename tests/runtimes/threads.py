# SPDX-License-Identifier: LGPL-2.1-only
# Threads with queues, locks, conditions, timed waits, sleeps and the collector; one line for each step.
import gc
import hashlib
import queue
import threading
import time

STEPS, WORKERS = 150, 4
jobs, results, lock = queue.Queue(), queue.Queue(), threading.Lock()
condition, ticks, total = threading.Condition(), 0, 0
local = threading.local()


class Cycle:
    def __init__(self):
        self.me = self


def work(number):
    local.done = 0
    while (job := jobs.get()) is not None:
        digest = hashlib.sha256(str(job).encode())
        for i in range(60):
            digest.update(bytes(20000))
            digest.update(str(i * job).encode())
        words = {str(n): [n] * 3 for n in range(2000)}
        value = int.from_bytes(digest.digest()[:6], "big") + sum(len(v) for v in words.values())
        [Cycle() for _ in range(50)]
        with lock:
            global total
            total += value
        local.done += 1
        results.put((job, value))
    results.put((None, local.done))


def tick():
    global ticks
    while ticks >= 0:
        time.sleep(0.001)
        with condition:
            ticks += 1
            condition.notify_all()


threads = [threading.Thread(target=work, args=(n,)) for n in range(WORKERS)]
clock = threading.Thread(target=tick, daemon=True)
for thread in [*threads, clock]:
    thread.start()
for step in range(STEPS):
    for part in range(WORKERS):
        jobs.put(step * WORKERS + part)
    values = sorted(results.get() for _ in range(WORKERS))
    with condition:
        before = ticks
        while ticks == before:
            condition.wait(timeout=10)
    if step % 20 == 0:
        gc.collect()
    print(step, values[0], total, flush=True)
for _ in threads:
    jobs.put(None)
for thread in threads:
    thread.join()
print(sum(results.get()[1] for _ in threads), flush=True)
