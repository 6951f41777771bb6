# SPDX-License-Identifier: LGPL-2.1-only
"""Checkpoints of this Python program, by itself: see ckpt.h and ckpt_ckpt(3).

The module finds libckpt.so preloaded, beside itself, where `ckpt sdk` has put it, or where the loader does. Functions
raise ckpt.Error (an OSError) when they fail. Callbacks run Python code: where a signal, `ckpt save`
or -z may ask for a checkpoint of a program with callbacks, put `with ckpt.held():` around all but
the places where that is welcome, or take checkpoints with checkpoint() alone.
"""

import contextlib
import ctypes
import os
import sys

NAME, ASYNCSIG, CONTINUE, MSPERIOD = 1, 2, 4, 8
FD_IGNORE, FD_RESTORE = 0, 1
(FD_REGULAR, FD_DIRECTORY, FD_TERMINAL, FD_DEVICE, FD_PIPE, FD_SOCKET, FD_UNNAMED,
 FD_OTHER) = range(1, 9)

_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Error(OSError):
    """Why a call failed."""


class _Config(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_int), ("name", ctypes.c_char * 4096),
                ("asyncsig", ctypes.c_uint), ("continues", ctypes.c_uint),
                ("msperiod", ctypes.c_uint)]


class Info(ctypes.Structure):
    """generation (checkpoints that led to this process), restarted, error (bytes)."""
    _fields_ = [("generation", ctypes.c_ulong), ("restarted", ctypes.c_int),
                ("error", ctypes.c_char * 512)]


class _Given(ctypes.Structure):
    _fields_ = [("argc", ctypes.c_int), ("argv", ctypes.POINTER(ctypes.c_char_p)),
                ("env", ctypes.POINTER(ctypes.c_char_p))]


class _Regular(ctypes.Structure):
    _fields_ = [("path", ctypes.c_void_p), ("mode", ctypes.c_int), ("offset", ctypes.c_long)]


class _Fd(ctypes.Structure):
    _fields_ = [("fd", ctypes.c_int), ("treatment", ctypes.c_int), ("type", ctypes.c_int),
                ("reg", ctypes.POINTER(_Regular))]


class _Table(ctypes.Structure):
    _fields_ = [("nfd", ctypes.c_uint), ("fds", ctypes.POINTER(_Fd))]


def _load():
    process = ctypes.CDLL(None, use_errno=True)
    if not hasattr(process, "ckpt_ckpt"):
        here = os.path.dirname(os.path.abspath(__file__))
        places = [os.path.join(here, place, "libckpt.so") for place in (".", "..")]
        place = next(filter(os.path.exists, places), "libckpt.so")
        process = ctypes.CDLL(place, use_errno=True)
    process.ckpt_fds.restype = ctypes.POINTER(_Table)
    process.ckpt_exclude.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    process.ckpt_include.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return process


_library = _load()
_libc = ctypes.CDLL(None)
_libc.strdup.restype = ctypes.c_void_p
_libc.free.argtypes = [ctypes.c_void_p]
_kept = []


def _try(result):
    if result < 0:
        number = ctypes.get_errno()
        raise Error(number, info().error.decode(errors="replace") or os.strerror(number))
    return result


def _name(name):
    return None if name is None else os.fsencode(name)


def info():
    """The state of this process: an Info."""
    state = Info()
    if _library.ckpt_info(ctypes.byref(state)) < 0:
        raise Error(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return state


def given():
    """What the restart was given: the list of --args, and a dict of --env."""
    state = _Given()
    _try(_library.ckpt_given(ctypes.byref(state)))
    words = [os.fsdecode(state.argv[i]) for i in range(state.argc)]
    pairs, at = {}, 0
    while state.env and state.env[at]:
        name, _, value = os.fsdecode(state.env[at]).partition("=")
        pairs[name], at = value, at + 1
    return words, pairs


def ready(name=None):
    """The place where a warm start begins: takes a checkpoint as checkpoint() does. In a restarted
    process sys.argv[1:] becomes what --args says, where it was said, and os.environ gets what --env
    says. 0 after the checkpoint, 1 in a restarted process."""
    restarted = checkpoint(name)
    if restarted:
        words, pairs = given()
        if words:
            sys.argv[1:] = words
        os.environ.update(pairs)
    return restarted


def checkpoint(name=None):
    """Takes a checkpoint; 0 after it, 1 in a restarted process."""
    return _try(_library.ckpt_ckpt(_name(name)))


def restart(name):
    """Becomes the program in the checkpoint `name`."""
    _try(_library.ckpt_try_restart(_name(name)))


def config(name=None, asyncsig=None, continues=None, msperiod=None):
    """Changes what is not None; the configuration as it was before."""
    new, old = _Config(), _Config()
    if name is not None:
        new.flags, new.name = new.flags | NAME, _name(name)
    if asyncsig is not None:
        new.flags, new.asyncsig = new.flags | ASYNCSIG, int(asyncsig)
    if continues is not None:
        new.flags, new.continues = new.flags | CONTINUE, int(continues)
    if msperiod is not None:
        new.flags, new.msperiod = new.flags | MSPERIOD, int(msperiod)
    _try(_library.ckpt_try_config(ctypes.byref(new), ctypes.byref(old)))
    return {"name": os.fsdecode(old.name), "asyncsig": old.asyncsig,
            "continues": bool(old.continues), "msperiod": old.msperiod}


def _register(function, callback):
    callback = _CALLBACK(lambda _, f=callback: f())
    _try(function(callback, None))
    _kept.append(callback)


def on_preckpt(f):
    """Calls f() before checkpoints."""
    _register(_library.ckpt_try_on_preckpt, f)


def on_postckpt(f):
    """Calls f() after checkpoints, where the program goes on."""
    _register(_library.ckpt_try_on_postckpt, f)


def on_restart(f):
    """Calls f() in restarted processes."""
    _register(_library.ckpt_try_on_restart, f)


class Fd:
    """A descriptor: fd, type, treatment; of regular files also path, mode and offset."""

    def __init__(self, row):
        self._row = row
        self.fd, self.type = row.fd, row.type

    @property
    def treatment(self):
        return self._row.treatment

    @treatment.setter
    def treatment(self, value):
        self._row.treatment = value

    @property
    def path(self):
        if not self._row.reg:
            return None
        return os.fsdecode(ctypes.string_at(self._row.reg.contents.path))

    @path.setter
    def path(self, value):
        old = self._row.reg.contents.path
        self._row.reg.contents.path = _libc.strdup(_name(value))
        _libc.free(old)

    @property
    def mode(self):
        return self._row.reg.contents.mode

    @mode.setter
    def mode(self, value):
        self._row.reg.contents.mode = value

    @property
    def offset(self):
        return self._row.reg.contents.offset

    @offset.setter
    def offset(self, value):
        self._row.reg.contents.offset = value


def fds():
    """The descriptors; in callbacks they may be changed. Valid until the next call."""
    table = _library.ckpt_fds()
    if not table:
        raise Error(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return [Fd(table.contents.fds[i]) for i in range(table.contents.nfd)]


def address_of(buffer):
    """The address of a writable buffer: an mmap, a bytearray, a numpy array."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def exclude(address, length):
    """Leaves the whole pages of some memory out of checkpoints."""
    _try(_library.ckpt_exclude(address, length))


def include(address, length):
    """Has memory in checkpoints again."""
    _try(_library.ckpt_include(address, length))


@contextlib.contextmanager
def held():
    """No checkpoint inside but by checkpoint()."""
    _try(_library.ckpt_hold())
    try:
        yield
    finally:
        _try(_library.ckpt_release())
