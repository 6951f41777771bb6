// SPDX-License-Identifier: LGPL-2.1-only
//! What an ancestor of a program does for its dumpers, which under Yama may not do it ([`crate::proc::forebear`]).
//!
//! Each dumper has a thread here, which is the tracer: when the dumper goes, the thread does, and the kernel lets go of
//! all that it traced, as it would have of the dumper's. The parent of the program's first process waits for it in another
//! thread, and waits of both would take each other's news: so it does not while that process is traced ([`unless_traced`]),
//! and hears from here how it has ended ([`ended`]).
//!
//! Whom we serve is somebody of our own user, who could as well have the program saved by its signal, or root.
//!
//! # Safety
//! A descriptor from accept(2) is owned from the start.
#![allow(unsafe_code)]

use super::raw;
use crate::error::{Because, Result};
use crate::proc::forebear::{Ask, LONGEST, NAMELESS, Reply, address, is_ours, shape, what};
use crate::proc::tree;
use crate::proc::{Pid, Process, Tid};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, accept4, bind, listen,
    recv, sendmsg, socket,
};
use std::collections::HashMap;
use std::fs::File;
use std::io::{IoSlice, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

/// How often a wait is tried again at once: a thread that is driven stops within microseconds.
const TRIES: u32 = 50;

/// What there is to know of the child for whose tree we serve.
struct Child {
    pid: Pid,
    /// The thread of ours that traces it.
    tracer: Option<Tid>,
    /// Its status, as of wait(2), if its end was seen here.
    ended: Option<i32>,
    /// When a dumper was done last.
    left: Option<Instant>,
}

static CHILD: Mutex<Child> =
    Mutex::new(Child { pid: Pid::NONE, tracer: None, ended: None, left: None });

fn child() -> MutexGuard<'static, Child> {
    CHILD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks at the child, unless it is traced here.
pub(crate) fn unless_traced<T>(look: impl FnOnce() -> Option<T>) -> Option<T> {
    let child = child();
    if child.tracer.is_some() { None } else { look() }
}

/// How the child has ended, if that was seen here.
pub(crate) fn ended() -> Option<i32> {
    child().ended
}

/// Whether a dumper has just gone: nobody tells that it has let go of the child.
pub(crate) fn has_just_left() -> bool {
    child().left.is_some_and(|at| at.elapsed() < Duration::from_secs(1))
}

/// The socket at which dumpers are served.
pub(crate) struct Forebear {
    socket: OwnedFd,
    /// The child, or a process whose PID namespace is that of those who ask.
    near: Pid,
}

impl Forebear {
    /// Makes it for the child `pid` and all that descend from it.
    ///
    /// # Errors
    /// There is no such socket here.
    pub(crate) fn of(pid: Pid) -> Result<Self> {
        child().pid = pid;
        Self::at(pid, pid)
    }

    /// Makes it for those in the PID namespace of `near`, which is not ours.
    ///
    /// # Errors
    /// As [`Forebear::of`].
    pub(crate) fn inside(near: Pid) -> Result<Self> {
        Self::at(NAMELESS, near)
    }

    fn at(id: Pid, near: Pid) -> Result<Self> {
        let what = || "cannot serve the dumpers of the program";
        let namespace = namespace(near).unwrap_or_default();
        let (kind, flags) = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
        let socket = socket(AddressFamily::Unix, kind, flags, None).because(what)?;
        let address = address(id, &namespace).because(what)?;
        bind(socket.as_raw_fd(), &address).because(what)?;
        listen(&socket, Backlog::MAXALLOWABLE).because(what)?;
        Ok(Self { socket, near })
    }

    /// Its number.
    pub(crate) fn number(&self) -> i32 {
        self.socket.as_raw_fd()
    }

    /// Serves from now on.
    ///
    /// # Errors
    /// No thread can be made.
    pub(crate) fn serve(self) -> Result<()> {
        thread(move || {
            loop {
                let fd = match accept4(self.socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                    Ok(fd) => fd,
                    Err(Errno::EBADF | Errno::EINVAL) => break,
                    // Nothing can be opened for a moment: anybody may connect, and many may at once.
                    Err(_) => {
                        std::thread::sleep(Duration::from_millis(10));
                        continue;
                    }
                };
                // SAFETY: the kernel has just made it for us.
                let line = unsafe { OwnedFd::from_raw_fd(fd) };
                if !is_ours(&line) {
                    continue;
                }
                let _ = thread(move || {
                    attend(&line, self.near);
                    let mut child = child();
                    // What another dumper traces stays its.
                    child.tracer.take_if(|tracer| *tracer == Tid::own());
                    child.left = Some(Instant::now());
                    drop(child);
                    wake();
                });
            }
        })
    }
}

/// Starts a thread.
///
/// # Errors
/// There can be none.
pub(crate) fn thread(work: impl FnOnce() + Send + 'static) -> Result<()> {
    let builder = std::thread::Builder::new().stack_size(128 << 10);
    builder.spawn(work).map(drop).because(|| "cannot start a thread of our own")
}

/// Has the thread that waits for the child look at it.
fn wake() {
    let own = nix::unistd::getpid();
    let _ = nix::sys::signal::kill(own, nix::sys::signal::Signal::SIGCHLD);
}

/// Serves one dumper to its end.
fn attend(line: &OwnedFd, near: Pid) {
    let mut numbers = Numbers::of(near);
    let mut message = vec![0; size_of::<Ask>() + LONGEST];
    while let Ok(len @ 1..) = recv(line.as_raw_fd(), &mut message, MsgFlags::empty()) {
        let Ok((asked, _)) = Ask::read_from_prefix(&message[..len]) else { return };
        let bytes = &mut message[size_of::<Ask>()..];
        let buffer = &mut bytes[..(asked.len as usize).min(LONGEST)];
        let (answer, fd) = match answer(&asked, buffer, &mut numbers) {
            Ok(answered) => answered,
            Err(errno) => (Reply { result: -i64::from(errno as i32), more: 0 }, None),
        };
        let back = if asked.shape & shape::OUT == 0 { &[] } else { &*buffer };
        let pieces = [IoSlice::new(answer.as_bytes()), IoSlice::new(back)];
        let fds: Vec<i32> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights };
        let flags = MsgFlags::MSG_NOSIGNAL;
        if sendmsg::<()>(line.as_raw_fd(), &pieces, rights, flags, None).is_err() {
            return;
        }
    }
}

/// The PID namespace of the process that has this id now.
fn namespace(pid: Pid) -> Option<std::path::PathBuf> {
    Process::glimpse(pid).ok()?.namespace("pid")
}

/// What a thread of ours is in its own PID namespace.
fn inner(id: Tid) -> Tid {
    Process::glimpse(id.as_pid()).map_or(id, |it| it.inner_pid().main_thread())
}

/// Ids in the PID namespace of the tree and in ours.
struct Numbers {
    /// The namespace, if it is another than ours.
    there: Option<std::path::PathBuf>,
    known: HashMap<Tid, Tid>,
}

impl Numbers {
    fn of(near: Pid) -> Self {
        let own = namespace(Pid::own());
        let there = namespace(near).filter(|there| Some(there) != own.as_ref());
        Self { there, known: HashMap::new() }
    }

    /// What a thread is here that has this id there.
    fn here(&mut self, id: Tid) -> Tid {
        let Some(there) = &self.there else { return id };
        let fits = |at: &Tid| inner(*at) == id;
        if let Some(known) = self.known.get(&id).filter(|known| fits(known)) {
            return *known;
        }
        let all = tree::pids().unwrap_or_default().into_iter();
        let all = all.filter(|pid| namespace(*pid).as_ref() == Some(there));
        let tasks = |pid| Process::glimpse(pid).and_then(|it| it.tasks()).unwrap_or_default();
        let found = all.flat_map(tasks).find(fits);
        // Of one that is gone a number that no process has.
        let found = found.unwrap_or(Tid::new(i32::MAX));
        self.known.insert(id, found);
        found
    }

    /// What a thread of ours is there.
    fn there(&self, id: Tid) -> Tid {
        if self.there.is_some() { inner(id) } else { id }
    }
}

/// Does what is asked for.
fn answer(
    asked: &Ask,
    buffer: &mut [u8],
    numbers: &mut Numbers,
) -> nix::Result<(Reply, Option<OwnedFd>)> {
    let plain = |result: i64| Ok((Reply { result, more: 0 }, None));
    if asked.what == what::TRACER {
        let own = Tid::own();
        // Nobody sees in there who we are.
        return plain(if numbers.there.is_some() { 0 } else { own.get().into() });
    }
    let id = numbers.here(Tid::new(asked.id));
    let errno = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EPERM));
    let open = |name: &str, writes: bool| {
        let process = Process::glimpse(id.as_pid()).map_err(|_| Errno::ESRCH)?;
        let opened = File::options().read(true).write(writes).open(process.path(name));
        opened.map_err(errno)
    };
    match asked.what {
        what::WAIT => {
            let (mut tries, mut child) = (if asked.data == 0 { 0 } else { TRIES }, child());
            let (found, status) = loop {
                match raw::await_change(id, false)? {
                    (0, _) if tries != 0 => tries -= 1,
                    news => break news,
                }
                drop(child);
                std::thread::yield_now();
                child = self::child();
            };
            if found != 0 && !libc::WIFSTOPPED(status) {
                note_end(&mut child, id, status);
            }
            Ok((Reply { result: found, more: status.into() }, None))
        }
        what::BURY => {
            let mut child = child();
            let status = raw::await_death(id);
            status.iter().for_each(|status| note_end(&mut child, id, *status));
            plain(status.is_some().into())
        }
        what::MEMORY => Ok((Reply::default(), Some(open("mem", true)?.into()))),
        what::CALL => plain(open("syscall", false)?.read(buffer).map_err(errno)? as i64),
        what::DESCRIPTOR => {
            raw::take(id.as_pid(), asked.data as i32, None).map(|fd| (Reply::default(), Some(fd)))
        }
        _ => {
            let mut child = child();
            let result = raw::perform(&Ask { id: id.get(), ..*asked }, buffer)?;
            if asked.what == libc::PTRACE_GETEVENTMSG as u32
                && let Ok((message, _)) = u64::read_from_prefix(buffer)
            {
                let inner = numbers.there(Tid::new(message as i32)).get() as u64;
                inner.write_to_prefix(buffer).map_err(|_| Errno::EINVAL)?;
            }
            if id == child.pid.main_thread() {
                match asked.what as i32 {
                    libc::PTRACE_SEIZE => child.tracer = Some(Tid::own()),
                    libc::PTRACE_DETACH => child.tracer = None,
                    _ => {}
                }
            }
            plain(result)
        }
    }
}

/// Remembers how the child has ended, for whoever waits for it.
fn note_end(child: &mut Child, id: Tid, status: i32) {
    if id == child.pid.main_thread() {
        (child.ended, child.tracer) = (Some(status), None);
        wake();
    }
}
