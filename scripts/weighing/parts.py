# SPDX-License-Identifier: LGPL-2.1-only
"""What scripts/bench measures, a function a part. Each adds rows, and asserts nothing."""

import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time

from weighing.table import RUNS, in_turns, milliseconds
from weighing.tools import Failed, Program

MIB = int(os.environ.get("CKPT_BENCH_MIB", 1024))
SIZES = sorted({64, min(1024, MIB), MIB})
THREADS = 1, 100, 1000
CORES = len(os.sched_getaffinity(0))
OWN_MEMORY = 32 << 20
WARM = 9
"""After so many checkpoints of a period of a second it is known what is written to between two."""
PAGE = 4096


def threads_said(threads):
    return "1 thread" if threads == 1 else f"{threads} threads"


class Bench:
    """What all parts have: the tools by name, the subject, and places for files."""

    def __init__(self, tools, weigh, rows, places):
        self.tools, self.weigh, self.rows, self.places = tools, weigh, rows, places
        self.ckpt = tools["ckpt"]
        self.at("tmpfs")

    def at(self, place):
        self.place = self.places[place]
        for tool in self.tools.values():
            tool.clear()
            tool.at(self.place)

    def words(self, *words):
        return subprocess.run([self.weigh, *map(str, words)], check=True, stdout=subprocess.PIPE, text=True,
                              stdin=subprocess.DEVNULL).stdout

    def written(self, count, sync):
        """write(2) of so many bytes into a new file, in ms."""
        target = os.path.join(self.place, "plain")
        try:
            return float(self.words("write", target, count, int(sync))) / 1e3
        finally:
            os.unlink(target)


def spawned(*words, env=None):
    nothing = os.open(os.devnull, os.O_RDWR)
    streams = [(os.POSIX_SPAWN_DUP2, nothing, number) for number in (0, 2)]
    spent = milliseconds(lambda: os.waitpid(os.posix_spawn(words[0], words, env or os.environ, file_actions=streams), 0))
    os.close(nothing)
    return spent


def launch(bench):
    ways = {"limit": lambda: spawned("/bin/true"), "ckpt": lambda: spawned(bench.ckpt.binary, "/bin/true")}
    if dmtcp := bench.tools.get("DMTCP"):
        def under():
            spent = spawned(*dmtcp.launching(), "/bin/true", env=dmtcp.env)
            dmtcp.quit()
            return spent
        ways["DMTCP"] = under
    figures, failed = in_turns(ways, 10 * RUNS)
    bench.rows.add("launch", "of true", "ms", figures, goal=lambda native: native + 1, limit_is="true by itself", failed=failed)


def run(bench):
    kinds = ["computing", "malloc and mutex", "system calls (open and close)", "spawning"]
    before = {"limit": ([], None), "ckpt": ([bench.ckpt.binary], None)}
    if dmtcp := bench.tools.get("DMTCP"):
        before["DMTCP"] = (dmtcp.launching(), dmtcp.env)
    figures = {name: [] for name in before}
    # A turn is short, and a moment in which the machine does something else is a part of it: many, and each begins in turn.
    for turn in range(4 * RUNS):
        ways = list(before.items())
        for name, (words, env) in ways if turn % 2 else reversed(ways):
            if name == "DMTCP" and turn >= RUNS:
                continue
            said = subprocess.run([*words, bench.weigh, "work"], check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL, cwd=bench.place, text=True, env=env).stdout
            figures[name].append([float(word) / 1e3 for word in said.split()])
            if name == "DMTCP":
                dmtcp.quit()
    for at, kind in enumerate(kinds):
        natively = statistics.median(row[at] for row in figures["limit"])
        ratios = {name: [row[at] / natively for row in rows] for name, rows in figures.items() if name != "limit"}
        bench.rows.add("run", kind, "ratio", ratios, goal=1.02, limit_is="ratio to the time without", native_ms=natively)


def pause(bench):
    """The longest gap that the busy thread of the program sees. The control is the same beside a write(2) of as many bytes."""
    cases = [(mib, threads, "small") for mib in SIZES for threads in THREADS] + [(mib, 1, "huge") for mib in SIZES]
    for mib, threads, pages in cases:
        forks, said, control = [], [], []

        def gap(program, during):
            program.ask("gap")
            during()
            return float(program.ask("")) / 1e3

        def ours():
            with bench.ckpt.start(str(mib), str(threads), pages) as program:
                forks.append(float(program.ask("fork")) / 1e3)
                spent = gap(program, lambda: said.append(bench.ckpt.save(program)))
                control.append(gap(program, lambda: bench.written(bench.ckpt.bytes(), False)))
            bench.ckpt.clear()
            return spent

        def theirs(tool):
            def way():
                with tool.start(str(mib), str(threads), pages) as program:
                    spent = gap(program, lambda: tool.save(program))
                tool.clear()
                return spent
            return way
        ways = {"ckpt": ours} | {name: theirs(tool) for name, tool in bench.tools.items() if name != "ckpt"}
        figures, failed = in_turns(ways)
        still = [float(re.search(r"stood still for ([\d.]+) ms", line)[1]) for line in said]
        slack = {1: 3, 100: 5}.get(threads, 0.04 * threads)
        of = {"small": "4 KiB pages", "huge": "huge pages"}[pages]
        bench.rows.add("pause", f"{mib} MiB of {of}, {threads_said(threads)}", "ms",
                       figures | {"limit": forks, "still": still, "control": control},
                       goal=lambda fork: 1.2 * fork + slack, limit_is="fork(2) of the same program", failed=failed)


def tree(bench):
    """Jobs of small sleeping processes, beside as many fork(2)s of one of that size."""
    scale = os.path.join(bench.place, "scale")
    subject = os.path.join(os.path.dirname(__file__), "../../tests/subjects/scale.c")
    subprocess.run(["cc", "-O2", "-pthread", "-o", scale, subject], check=True)
    for processes in 20, 200:
        with bench.ckpt.start("1", "1") as one, \
                Program([scale, str(processes), "1", "0"], log=bench.ckpt.log, cwd=bench.place) as program:
            def saved():
                return float(re.search(r"stood still for ([\d.]+) ms", bench.ckpt.save(program))[1])
            saved()
            figures, failed = in_turns({
                "limit": lambda: (processes + 1) * float(one.ask("fork")) / 1e3, "ckpt": saved})
            program.tell("go")
            program.process.wait()
        bench.rows.add("pause", f"a job of {processes + 1} processes", "ms", figures,
                       goal=lambda forks: 1.2 * forks + 5 + processes + 1, limit_is="as many fork(2)s", failed=failed)


def end(bench):
    """A checkpoint that ends the program, without fsync(2) on either side."""
    for place in bench.places:
        bench.at(place)
        cases = [(mib, threads) for mib in SIZES for threads in THREADS if place == "tmpfs" or threads == 1]
        for mib, threads in cases:
            sizes = []

            def ended(tool):
                def way():
                    with tool.start(str(mib), str(threads)) as program:
                        spent = milliseconds(lambda: tool.end(program))
                        if tool is bench.ckpt:
                            sizes.append(tool.bytes())
                    tool.clear()
                    return spent
                return way
            ways = {name: ended(tool) for name, tool in bench.tools.items()}
            figures, failed = in_turns(ways | {"limit": lambda: bench.written(sizes[-1], False)})
            slack = {1: 10, 100: 15}.get(threads)
            bench.rows.add("dump and end", f"{mib} MiB, {threads_said(threads)}, {place}", "ms", figures,
                           goal=slack and (lambda write: 1.1 * write + slack), limit_is="write(2) of as many bytes", failed=failed)
    bench.at("tmpfs")


def image(bench):
    """A checkpoint's bytes beside those of the pages that are not zeros."""
    for mib in SIZES[:2]:
        sizes, failed = {}, {}
        with Program([bench.weigh, str(mib), "1"], log=bench.ckpt.log, cwd=bench.place) as program:
            pages = [PAGE * nonzero(program.pid)]
        for name, tool in bench.tools.items():
            try:
                with tool.start(str(mib), "1") as program:
                    tool.end(program)
                    sizes[name] = [tool.bytes()]
            except Failed as error:
                failed[name] = str(error)
            tool.clear()
        stub = os.path.getsize(bench.ckpt.binary)
        bench.rows.add("image", f"of a program with {mib} MiB", "bytes", sizes | {"limit": pages},
                       goal=lambda content: 1.01 * content + stub, limit_is="its pages that are not zeros, with libraries", failed=failed)


def nonzero(pid):
    """How many private pages a process has that are not zeros, those of its executable and libraries among them
    (proc_pid_pagemap(5))."""
    count = 0
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/pagemap", "rb") as pagemap, open(f"/proc/{pid}/mem", "rb") as mem:
        for line in maps:
            span, rights, _, _, inode = line.split()[:5]
            start, stop = (int(word, 16) for word in span.split("-"))
            if rights[3] != "p" or "[v" in line or start >> 47:
                continue
            pagemap.seek(start // PAGE * 8)
            words = memoryview(pagemap.read((stop - start) // PAGE * 8)).cast("Q")
            for index, word in enumerate(words):
                if inode != "0" or word >> 62:
                    mem.seek(start + index * PAGE)
                    try:
                        count += mem.read(PAGE).strip(b"\0") != b""
                    except OSError:
                        pass
    return count


def restart(bench):
    """From exec to the first answer, and to the moment when all of the memory was written to."""
    lazily = "--lazy" in bench.ckpt.helps
    for mib in SIZES:
        for threads in THREADS:
            whole, failed, ways, everything = {}, {}, {}, {}

            def restarted(tool, name, *options):
                everything[name] = []

                def way():
                    begin = time.monotonic()
                    with tool.restart(*options) as program:
                        program.ask("step")
                        first = (time.monotonic() - begin) * 1e3
                        program.ask("touch")
                        everything[name].append((time.monotonic() - begin) * 1e3)
                    return first
                return way
            for name, tool in bench.tools.items():
                try:
                    with tool.start(str(mib), str(threads), "plain") as program:
                        tool.end(program)
                    ways[name] = restarted(tool, name)
                except Failed as error:
                    failed[name] = str(error)
            if lazily:
                ways["lazy"] = restarted(bench.ckpt, "lazy", "--lazy")
            reads = []

            def read():
                reads.append(float(bench.words("read", bench.ckpt.image(), CORES)) / 1e3)
                return reads[-1]
            figures, more = in_turns(ways | {"limit": read})
            what = f"{mib} MiB, {threads_said(threads)}"
            limit_is = f"read(2) of the file into huge pages by {CORES} threads"
            lazy = {"limit": reads, "ckpt": figures.pop("lazy", [])}, {"limit": reads, "ckpt": everything.pop("lazy", [])}
            bench.rows.add("restart to the first step", what, "ms", figures, goal=lambda read: 1.1 * read + 15,
                           limit_is=limit_is, failed=failed | more)
            bench.rows.add("restart until all was written once", what, "ms", everything | {"limit": reads},
                           goal=lambda read: 1.2 * read + 15, limit_is=limit_is, failed=failed | more)
            if lazily:
                bench.rows.add("restart --lazy to the first step", what, "ms", lazy[0], goal=15, limit_is=limit_is)
                bench.rows.add("restart --lazy until all was written once", what, "ms", lazy[1], limit_is=limit_is)
            for tool in bench.tools.values():
                tool.clear()


class Monitor:
    """Looks at the monitor of a program: how long its dumpers are at work, and what they have written."""

    def __init__(self, pid):
        deadline = time.monotonic() + 30
        while not (found := [m for m in processes_named("ckpt-monitor") if str(pid) in command_line(m)]):
            if time.monotonic() > deadline:
                raise Failed("the program has no monitor")
            time.sleep(0.01)
        self.pid, self.program = found[0], pid

    def is_dumping(self):
        with open(f"/proc/{self.pid}/task/{self.pid}/children") as file:
            return bool(file.read().strip())

    def wrote(self):
        """Bytes given to write(2) by it, the children that it has waited for, and the program."""
        def of(pid):
            with open(f"/proc/{pid}/io") as file:
                return int(next(line.split()[1] for line in file if line.startswith("wchar")))
        return of(self.pid) + of(self.program)

    def next(self):
        """The milliseconds and the bytes of the next checkpoint that begins."""
        while self.is_dumping():
            time.sleep(0.001)
        before = self.wrote()
        while not self.is_dumping():
            time.sleep(0.001)
        spent = milliseconds(lambda: [time.sleep(0.001) for _ in iter(self.is_dumping, False)])
        return spent, self.wrote() - before


def processes_named(name):
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm") as file:
                if file.read().strip() == name:
                    found.append(int(pid))
        except OSError:
            pass
    return found


def command_line(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read().split("\0")
    except OSError:
        return []


def periodic(bench):
    """Checkpoints with -z 1000 of a program that dirties so many percent of its pages a second."""
    for place in bench.places:
        bench.at(place)
        for mib in SIZES[1:]:
            for percent in 0, 1, 10:
                gaps, times, counts = [], [], []
                with bench.ckpt.start(str(mib), "1", options=("-z", "1000")) as program:
                    monitor = Monitor(program.pid)
                    full, _ = monitor.next()
                    # A large mapping that the second finds again is tracked from the third on, and each brings the one before the
                    # last up to date, of which what was written to in the second before it has to be known.
                    for _ in range(WARM - 1):
                        monitor.next()
                    for _ in range(RUNS):
                        program.ask(f"gap {percent}")
                        spent, count = monitor.next()
                        gaps.append(float(program.ask("")) / 1e3)
                        times.append(spent)
                        counts.append(count)
                bench.ckpt.clear()
                what = f"{mib} MiB, {percent} percent dirtied a second, {place}"
                # What is dirtied while the checkpoint is taken belongs to the next.
                dirty = (mib << 20) * percent // 100
                pauses = {1: 5, 10: 25}
                bench.rows.add("periodic, pause", what, "ms", {"ckpt": gaps}, goal=pauses.get(percent))
                faster = {"tmpfs": 40, "disk": 5}[place] if percent == 1 else None
                bench.rows.add("periodic, time", what, "ms", {"ckpt": times, "limit": [full]},
                               goal=faster and (lambda full: full / faster), limit_is="the first, whole one")
                bench.rows.add("periodic, written", what, "bytes", {"ckpt": counts, "limit": [dirty]},
                               goal=(lambda dirty: 3 * dirty + (1 << 20)) if percent else None, limit_is="what was dirtied in a second")
    bench.at("tmpfs")


def slowdown(bench):
    """A program that computes and dirties 10 percent of its pages a second, with -z 1000: with its first checkpoints, which
    are whole ones, and then."""
    mib = min(1024, MIB)
    kinds = {"from the start": 4000, "while it gets known": 1000 * (WARM - 4), "when it is known": 4000}
    units = {"limit": [], "ckpt": []}

    def done(name, program):
        with program:
            units[name].append([int(program.ask(f"rate 10 {spent}")) for spent in kinds.values()])
        bench.ckpt.clear()
        return 0
    bench.ckpt.clear()
    in_turns({
        "limit": lambda: done("limit", Program([bench.weigh, str(mib), "1"], log=bench.ckpt.log, cwd=bench.place)),
        "ckpt": lambda: done("ckpt", bench.ckpt.start(str(mib), "1", options=("-z", "1000")))}, 3)
    for at, kind in enumerate(kinds):
        natively = statistics.median(row[at] for row in units["limit"])
        bench.rows.add("periodic, slow-down", f"{mib} MiB, 10 percent dirtied a second, -z 1000, {kind}", "ratio",
                       {"ckpt": [natively / row[at] for row in units["ckpt"]]}, goal=1.05, limit_is="ratio to the time without")


def peak(pid):
    """The peak of a process's resident memory, and what is resident, in bytes (proc_pid_status(5))."""
    with open(f"/proc/{pid}/status") as file:
        words = dict(line.split(":", 1) for line in file)
    return tuple(int(words[key].split()[0]) << 10 for key in ("VmHWM", "VmRSS"))


def memory(bench):
    """The memory of what ckpt runs itself, at most."""
    ckpt = bench.ckpt
    programs = [(f"{mib} MiB", [str(mib), "1"]) for mib in SIZES] + [
        (f"{count} {kind}", ["items", kind, str(count)])
        for kind, count in (("mappings", 50000), ("descriptors", 10000), ("threads", 1000))] + [
        (f"a deleted file of {min(MIB, 1024)} MiB", ["items", "deleted", str(min(MIB, 1024))])]
    store = os.path.join(bench.place, "store")
    os.mkdir(store)
    server = subprocess.Popen([ckpt.binary, "serve", "-p", "0", "--listen", "127.0.0.1", "-d", store, "--insecure"],
                              stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        port = next(found[1] for line in server.stderr if (found := re.search(r"serving .*:(\d+)$", line.strip())))
        name = f"cssrv://127.0.0.1:{port}/image"
        for what, words in programs:
            def add(doing, count):
                bench.rows.add("own memory", f"{doing}, {what}", "bytes", {"ckpt": [count]}, goal=OWN_MEMORY)
            with ckpt.start(*words) as program:
                add("dump", ckpt.measured("save", str(program.pid), "-n", ckpt.image()))
                add("upload", ckpt.measured("save", str(program.pid), "--insecure", "-n", name))
            add("server, so far", peak(server.pid)[0])
            with ckpt.restart() as program:
                program.ask("step")
                most, now = peak(program.pid)
                add("restart (beside the program's)", most - now)
            ckpt.clear()
    finally:
        server.terminate()
        server.wait()
        server.stderr.close()
        shutil.rmtree(store)


def linear(bench):
    """Dumps and restarts of programs with many of something; beside CRIU."""
    tools = {name: tool for name, tool in bench.tools.items() if name != "DMTCP"}
    descriptors = min(100000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 1000)
    kinds = {"mappings": (1000, 10000, 50000), "descriptors": (1000, descriptors // 2, descriptors), "threads": (100, 1000, 4000)}
    for kind, counts in kinds.items():
        medians = {"dump and end": [], "restart": []}
        for count in counts:
            ways, restarts, failed = {}, {name: [] for name in tools}, {}

            def both(name, tool):
                def way():
                    with tool.start("items", kind, str(count)) as program:
                        spent = milliseconds(lambda: tool.end(program))
                    begin = time.monotonic()
                    with tool.restart() as program:
                        program.ask("step")
                        restarts[name].append((time.monotonic() - begin) * 1e3)
                    tool.clear()
                    return spent
                return way
            ways = {name: both(name, tool) for name, tool in tools.items()}
            figures, failed = in_turns(ways, min(RUNS, 3))
            for part, those in (("dump and end", figures), ("restart", restarts)):
                beside = statistics.median(those["CRIU"]) if those.get("CRIU") else None
                ours = bench.rows.add(part, f"{count} {kind}", "ms", those, goal=beside, failed=failed)
                medians[part].append(ours.get("ckpt"))
        for part, (few, some, many) in medians.items():
            if None in (few, some, many):
                continue
            less, more = (some - few) / (counts[1] - counts[0]), (many - some) / (counts[2] - counts[1])
            bench.rows.add(part, f"for each of {kind} from {counts[1]} to {counts[2]}", "us",
                           {"ckpt": [more * 1e3], "limit": [less * 1e3]}, goal=lambda less: 1.2 * less,
                           limit_is=f"the same from {counts[0]} to {counts[1]}")


def calls(bench):
    """System calls of `ckpt save`, the second time: no noise touches them."""
    if not shutil.which("strace"):
        print("calls: there is no strace", file=sys.stderr)
        return
    for threads in THREADS:
        with bench.ckpt.start("1", str(threads)) as program:
            bench.ckpt.save(program)
            table = os.path.join(bench.place, "calls")
            bench.ckpt.run("strace", "-f", "-c", "-o", table, bench.ckpt.binary, "save", str(program.pid), "-n", bench.ckpt.image())
        with open(table) as file:
            found = {line.split()[-1]: int(line.split()[3]) for line in file if re.match(r"\s*\d+[.,]\d+ .*\w$", line)}
        bench.ckpt.clear()
        ptrace = found.get("ptrace", 0)
        bench.rows.add("system calls of ckpt save", threads_said(threads), "calls", {"ckpt": [found["total"]]}, ptrace_calls=ptrace)


def server(bench):
    said = subprocess.run([os.path.join(os.path.dirname(__file__), "../bench-server"), str(MIB)], check=True, text=True,
                          stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=os.environ | {"CKPT_BIN": bench.ckpt.binary}).stdout
    for name, ratio in re.findall(r"upload, (--insecure|with a key) .*copy ([\d.]+)", said):
        bench.rows.add("upload", name, "ratio", {"ckpt": [float(ratio)]}, limit_is="ratio to the time of a plain TCP copy")


PARTS = {part.__name__: part for part in
         (launch, run, pause, tree, end, image, restart, periodic, slowdown, memory, linear, calls, server)}
