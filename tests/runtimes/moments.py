# SPDX-License-Identifier: LGPL-2.1-only
# As Moments.java, in Python.
import select, sys, threading, time, queue, os

early = False
begun = threading.Barrier(8)


def fail(why):
    print(why, file=sys.stderr, flush=True)
    os._exit(20)


def begin(name, wait):
    def run():
        begun.wait()
        wait()
        if not early:
            fail(name + " ended early")
    thread = threading.Thread(target=run)
    thread.start()
    return thread


def condition():
    c = threading.Condition()
    with c:
        c.wait(2)


def empty():
    try:
        queue.Queue().get(timeout=2)
    except queue.Empty:
        pass


def short():
    global early
    select.select([], [], [], 0.7)
    early = True


held = threading.Lock()
held.acquire()
waits = {
    "Event": lambda: threading.Event().wait(2),
    "Condition": condition,
    "sleep": lambda: time.sleep(2),
    "Queue": empty,
    "Lock": lambda: held.acquire(timeout=2),
    "Semaphore": lambda: threading.Semaphore(0).acquire(timeout=2),
    "select": short,
}
threads = [begin(*wait) for wait in waits.items()]
begun.wait()


def sleeps(thread):
    with open(f"/proc/self/task/{thread.native_id}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "S"


while not all(not thread.is_alive() or sleeps(thread) for thread in threads):
    time.sleep(0)
print("ready", flush=True)
for thread in threads:
    thread.join()
print("over", flush=True)
