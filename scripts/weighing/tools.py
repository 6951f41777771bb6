# SPDX-License-Identifier: LGPL-2.1-only
"""What scripts/bench compares: each of them starts a program, saves it, ends it with a checkpoint, and restarts it."""

import contextlib
import os
import shutil
import subprocess
import time

PATIENCE = 120
"""How many seconds anything may take before it counts as failed."""


class Failed(Exception):
    """One of them cannot do what was asked for; its last words."""


class Program:
    """A running weigh.c, or what a checkpoint of it became. It says "ready" only when it was started."""

    def __init__(self, words, *, log, cwd, pass_fds=(), fresh=True, env=None, leave=None):
        self.log, self.leave = log, leave
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                                            cwd=cwd, pass_fds=pass_fds, env=env)
        self.pid = self.process.pid
        if fresh:
            self.hear()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.leave:
            self.leave()
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def hear(self):
        line = self.process.stdout.readline()
        if not line:
            raise Failed(f"the program has ended: {last_words(self.log)}")
        return line.strip()

    def tell(self, line):
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Failed(f"the program has ended: {last_words(self.log)}") from None

    def ask(self, line):
        self.tell(line)
        return self.hear()


def last_words(log):
    try:
        with open(log, "rb") as file:
            return file.read()[-300:].decode(errors="replace").strip().replace("\n", "; ")
    except FileNotFoundError:
        return ""


class Tool:
    """One way of checkpointing, with a place for its files."""

    name = ""

    def __init__(self, directory, weigh):
        self.directory, self.weigh = directory, weigh
        self.log = os.path.join(directory, f"{self.name}.log")
        self.at(directory)

    def at(self, place):
        """Where its checkpoints lie from now on."""
        self.place = os.path.join(place, self.name + ".d")
        shutil.rmtree(self.place, ignore_errors=True)
        os.mkdir(self.place)

    def run(self, *words, allowed=(0,), env=None):
        with open(self.log, "ab") as errors:
            try:
                done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True,
                                      cwd=self.place, timeout=PATIENCE, env=env)
            except subprocess.TimeoutExpired:
                raise Failed(f"{words[0]}: not done after {PATIENCE} s") from None
        if done.returncode not in allowed:
            raise Failed(f"{' '.join(words)}: status {done.returncode}: {last_words(self.log)}")
        return done.stdout

    def clear(self):
        """Removes all checkpoints. A monitor whose program has just ended may remove one of its own meanwhile."""
        for name in os.listdir(self.place):
            path = os.path.join(self.place, name)
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)

    def bytes(self):
        """What its checkpoint takes."""
        files = [os.path.join(top, name) for top, _, names in os.walk(self.place) for name in names]
        return sum(os.path.getsize(file) for file in files)


class Ckpt(Tool):
    """ckpt: the programs run under it, as they usually do."""

    name = "ckpt"

    def __init__(self, directory, weigh, binary):
        self.binary = binary
        super().__init__(directory, weigh)
        self.helps = self.run(binary, "--help")

    def image(self):
        return os.path.join(self.place, "image.ckpt")

    def start(self, *words, options=()):
        words = [self.binary, "-n", self.image(), *options, self.weigh, *words]
        return Program(words, log=self.log, cwd=self.place)

    def save(self, program, *options):
        return self.run(self.binary, "save", str(program.pid), "-n", self.image(), *options)

    def end(self, program, unsynced=True):
        """Neither of the others calls fsync(2)."""
        before = [self.weigh, "unsynced"] if unsynced else []
        self.run(*before, self.binary, "save", "--stop", str(program.pid), "-n", self.image())
        program.process.wait()

    def restart(self, *options):
        return Program([self.image(), *options], log=self.log, cwd=self.place, fresh=False)

    def measured(self, *words):
        """The most memory that a call of ours has at a time, in bytes: its own, and what it maps of files."""
        done = subprocess.run([self.weigh, "peak", self.binary, *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, cwd=self.place, text=True)
        if done.returncode:
            raise Failed(f"{words}: {done.stderr[-300:]}")
        return int(done.stderr.split()[-1])


class Criu(Tool):
    """CRIU, as root."""

    name = "CRIU"

    def __init__(self, directory, weigh, binary):
        self.binary = binary
        super().__init__(directory, weigh)

    def start(self, *words):
        # A restart compares the length of files with what it was.
        program = Program([self.weigh, *words], log=os.devnull, cwd=self.place)
        descriptors = f"/proc/{program.pid}/fd/"
        self.pipes = [os.readlink(descriptors + str(number)) for number in (0, 1)]
        return program

    def images(self):
        path = os.path.join(self.place, "images")
        shutil.rmtree(path, ignore_errors=True)
        os.mkdir(path)
        return path

    def dump(self, program, *options):
        self.run(self.binary, "dump", "-t", str(program.pid), "-D", self.images(), "-o", self.log, "-v1", "--shell-job", *options)

    def save(self, program):
        self.dump(program, "--leave-running")

    def end(self, program):
        self.dump(program)
        program.process.wait()

    def restart(self):
        """The program has other pipes then, in place of those that it was saved with."""
        ours, theirs = os.pipe(), os.pipe()
        inherited = [f"fd[{ours[0]}]:{self.pipes[0]}", f"fd[{theirs[1]}]:{self.pipes[1]}"]
        options = [word for one in inherited for word in ("--inherit-fd", one)]
        images = os.path.join(self.place, "images")
        words = [self.binary, "restore", "-D", images, "-o", self.log, "-v1", "--shell-job", *options]
        return Inherited(words, (ours, theirs), log=self.log, cwd=self.place)


class Inherited(Program):
    """CRIU, which waits for the program that it has restored and that has the ends of two pipes."""

    def __init__(self, words, pipes, *, log, cwd):
        (from_us, self.to), (self.back, to_us) = pipes
        super().__init__(words, log=log, cwd=cwd, pass_fds=(from_us, to_us), fresh=False)
        os.close(from_us)
        os.close(to_us)
        self.back = os.fdopen(self.back)

    def hear(self):
        line = self.back.readline()
        if not line:
            raise Failed(f"the program has ended: {last_words(self.log)}")
        return line.strip()

    def tell(self, line):
        os.write(self.to, (line + "\n").encode())

    def __exit__(self, *_):
        # The program ends when its input does.
        os.close(self.to)
        self.back.close()
        self.process.wait()
        super().__exit__()


class Dmtcp(Tool):
    """DMTCP without gzip; each program has a coordinator of its own, the port of which is in a file."""

    name = "DMTCP"

    def __init__(self, directory, weigh, binaries):
        self.binaries = binaries
        self.env = dict(os.environ, DMTCP_QUIET="2", DMTCP_DISABLE_STRICT_CHECKING="1")
        self.port = os.path.join(directory, "port")
        super().__init__(directory, weigh)

    def binary(self, name):
        return os.path.join(self.binaries, name)

    def words(self, name):
        return [self.binary(name), "--new-coordinator", "--coord-port", "0", "--port-file", self.port, "--tmpdir", self.directory]

    def launching(self):
        return [*self.words("dmtcp_launch"), "--no-gzip", "--ckptdir", self.place]

    def start(self, *words):
        return self.coordinated([*self.launching(), self.weigh, *words], fresh=True)

    def restart(self):
        return self.coordinated([*self.words("dmtcp_restart"), self.image()], fresh=False)

    def coordinated(self, words, fresh):
        if os.path.exists(self.port):
            os.unlink(self.port)
        return Program(words, log=self.log, cwd=self.place, fresh=fresh, env=self.env, leave=self.quit)

    def command(self, *words):
        with open(self.port) as file:
            port = file.read().strip()
        return self.run(self.binary("dmtcp_command"), "-p", port, *words, allowed=(0, 2), env=self.env)

    def quit(self):
        """The coordinator ends with its program."""
        try:
            self.command("-q")
        except (Failed, FileNotFoundError):
            pass

    def image(self):
        names = [name for name in os.listdir(self.place) if name.endswith(".dmtcp")]
        return os.path.join(self.place, names[0]) if names else ""

    def bytes(self):
        return os.path.getsize(self.image())

    def save(self, program):
        self.clear()
        self.command("-bc")
        deadline = time.monotonic() + PATIENCE
        while not self.image():
            if time.monotonic() > deadline:
                raise Failed(f"no checkpoint: {last_words(self.log)}")
            time.sleep(0.002)

    def end(self, program):
        self.clear()
        self.command("-kc")
        program.process.wait()
