// SPDX-License-Identifier: LGPL-2.1-only
//! Asking a forebear of a process for what only an ancestor of it may do.
//!
//! Under Yama (kernel.yama.ptrace_scope = 1) a process is traced by its ancestors, and by the one that it has named
//! itself (PR_SET_PTRACER), which no child of it inherits. So where Yama is on, ckpt stays as the parent of the program,
//! and a dumper, which descends from the program or from nobody, has that ancestor make the calls
//! ([`crate::ptrace::forebear`] serves them). One thread of the forebear serves one dumper: it is the tracer, and its end
//! lets go of all, as the dumper's would.
//!
//! # Safety
//! A descriptor that a message brings is owned from the start.
#![allow(unsafe_code)]

use super::Process;
use super::id::{Pid, Tid};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect,
    getsockopt, recvmsg, sendmsg, socket, sockopt,
};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What can be asked for beside the requests of ptrace(2), which have smaller numbers.
pub(crate) mod what {
    /// waitpid(2); the answer's `more` is the status. With `data` it may take a moment.
    pub(crate) const WAIT: u32 = 0x1_0000;
    /// waitid(2) for the end of a thread.
    pub(crate) const BURY: u32 = 0x1_0001;
    /// A descriptor of /proc/PID/mem.
    pub(crate) const MEMORY: u32 = 0x1_0002;
    /// The text of /proc/PID/syscall, which is checked when it is read.
    pub(crate) const CALL: u32 = 0x1_0003;
    /// pidfd_getfd(2) of the descriptor `data`.
    pub(crate) const DESCRIPTOR: u32 = 0x1_0005;
    /// The answer is the thread that serves.
    pub(crate) const TRACER: u32 = 0x1_0006;
}

/// How a request uses its buffer.
pub(crate) mod shape {
    /// The buffer holds something for the kernel.
    pub(crate) const IN: u32 = 1;
    /// The kernel fills it.
    pub(crate) const OUT: u32 = 2;
    /// It is what a struct iovec leads to; its length then comes back.
    pub(crate) const VECTOR: u32 = 4;
    /// It begins with the 16 bytes that `addr` leads to; the rest is what `data` leads to.
    pub(crate) const PAIR: u32 = 8;
}

/// The longest buffer of a request: extended state is the longest.
pub(crate) const LONGEST: usize = 24 << 10;

/// One request.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Ask {
    pub(crate) what: u32,
    /// The thread or process.
    pub(crate) id: i32,
    pub(crate) addr: u64,
    pub(crate) data: u64,
    /// Bits of [`shape`].
    pub(crate) shape: u32,
    /// Bytes of the buffer.
    pub(crate) len: u32,
}

/// Its answer.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Reply {
    /// The result, or a negative error number.
    pub(crate) result: i64,
    pub(crate) more: i64,
}

const _: () = assert!(size_of::<Ask>() == 32 && size_of::<Reply>() == 16);

/// The way to a forebear.
struct Line {
    /// The process that has made it: a fork(2) of it makes one of its own.
    owner: u32,
    /// Whose forebear was looked for.
    of: Pid,
    /// None: there is no forebear.
    socket: Option<OwnedFd>,
    /// Nobody's is needed.
    is_needless: bool,
    /// The thread that traces in our place.
    tracer: Tid,
}

static LINE: Mutex<Line> = Mutex::new(Line {
    owner: 0,
    of: Pid::NONE,
    socket: None,
    is_needless: false,
    tracer: Tid::NONE,
});

/// Whether processes here are traced by their ancestors alone: Yama is on (or a test wants to have it so).
pub(crate) fn is_needed() -> bool {
    super::setting("kernel/yama/ptrace_scope") == Some(1) || std::env::var_os("CKPT_STAY").is_some()
}

/// Whether this process may trace whatever its user namespace has.
pub(crate) fn may_trace_all() -> bool {
    const CAP_SYS_PTRACE: u32 = 19;
    let own = Process::own().and_then(|own| own.status(own.main_thread()));
    own.is_ok_and(|own| own.may(CAP_SYS_PTRACE))
}

/// The number of a process in [`address`] that those who ask do not see.
pub(crate) const NAMELESS: Pid = Pid::NONE;

/// The name of the socket at which the parent of a process serves; its id and its PID namespace, as it sees them.
pub(crate) fn address(id: Pid, namespace: &Path) -> nix::Result<UnixAddr> {
    UnixAddr::new_abstract(format!("ckpt-forebear-{id}-{}", namespace.display()).as_bytes())
}

/// Looks for a forebear of a process that serves us from then on; whoever may trace every process of its user needs none.
pub(crate) fn engage(pid: Pid) {
    let mut line = LINE.lock().unwrap_or_else(PoisonError::into_inner);
    let known = line.of == pid || line.socket.is_some() || line.is_needless;
    if line.owner == std::process::id() && known {
        return;
    }
    let is_needless = may_trace_all();
    *line =
        Line { owner: std::process::id(), of: pid, socket: None, is_needless, tracer: Tid::NONE };
    let Some(namespace) = own_namespace().filter(|_| !is_needless) else { return };
    let mut at = pid;
    while line.socket.is_none() {
        line.socket = reach(at, &namespace);
        if at == NAMELESS {
            break;
        }
        at = Process::glimpse(at).and_then(|it| it.main_stat()).map_or(NAMELESS, |it| it.ppid);
    }
    let ask = Ask { what: what::TRACER, ..Ask::default() };
    line.tracer = exchange(&line, &ask, &mut [])
        .map_or(Tid::NONE, |(answer, _)| Tid::new(answer.result as i32));
}

/// Whether the parent of this process serves its dumpers already.
pub(crate) fn is_served() -> bool {
    let own = Pid::own();
    own_namespace().is_some_and(|namespace| reach(own, &namespace).is_some())
}

/// The PID namespace of this process.
pub(crate) fn own_namespace() -> Option<PathBuf> {
    Process::glimpse(Pid::own()).ok()?.namespace("pid")
}

/// The socket of a forebear: of our own user, or of root.
fn reach(pid: Pid, namespace: &Path) -> Option<OwnedFd> {
    let kind = SockType::SeqPacket;
    let socket = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).ok()?;
    connect(socket.as_raw_fd(), &address(pid, namespace).ok()?).ok()?;
    is_ours(&socket).then_some(socket)
}

/// Whether who is at the other end of a line is of our own user, or root.
pub(crate) fn is_ours(line: &OwnedFd) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    let there = getsockopt(line, sockopt::PeerCredentials).map(|peer| peer.uid());
    there.is_ok_and(|user| user == own || user == 0)
}

/// The thread that traces for this process: one of a forebear, or the caller.
pub(crate) fn tracer() -> Tid {
    let line = LINE.lock().unwrap_or_else(PoisonError::into_inner);
    match line.socket {
        Some(_) if line.owner == std::process::id() => line.tracer,
        _ => Tid::own(),
    }
}

/// Whether somebody else makes our calls.
pub(crate) fn is_engaged() -> bool {
    let line = LINE.lock().unwrap_or_else(PoisonError::into_inner);
    line.socket.is_some() && line.owner == std::process::id()
}

/// Has the forebear make a call; None where there is none, and the caller makes it itself. Who has lost its forebear
/// has lost all that it traced.
pub(crate) fn ask(ask: &Ask, buffer: &mut [u8]) -> Option<nix::Result<Reply>> {
    let line = LINE.lock().unwrap_or_else(PoisonError::into_inner);
    if line.socket.is_none() || line.owner != std::process::id() {
        return None;
    }
    let answered = exchange(&line, ask, buffer).map_err(|_| Errno::ESRCH);
    Some(answered.and_then(|(answer, _)| checked(answer)))
}

/// The same for what has a descriptor as its answer.
pub(crate) fn open(what: u32, id: i32, data: i32) -> Option<nix::Result<OwnedFd>> {
    let line = LINE.lock().unwrap_or_else(PoisonError::into_inner);
    if line.socket.is_none() || line.owner != std::process::id() {
        return None;
    }
    let ask = Ask { what, id, data: data as u64, ..Ask::default() };
    let answered = exchange(&line, &ask, &mut []).map_err(|_| Errno::ESRCH);
    Some(answered.and_then(|(answer, fd)| {
        checked(answer)?;
        fd.ok_or(Errno::EBADF)
    }))
}

fn checked(answer: Reply) -> nix::Result<Reply> {
    match answer.result {
        failed @ -4095..0 => Err(Errno::from_raw(-failed as i32)),
        _ => Ok(answer),
    }
}

fn exchange(line: &Line, ask: &Ask, buffer: &mut [u8]) -> nix::Result<(Reply, Option<OwnedFd>)> {
    let socket = line.socket.as_ref().ok_or(Errno::EBADF)?.as_raw_fd();
    let sent = if ask.shape & shape::IN == 0 { &[] } else { &*buffer };
    let pieces = [IoSlice::new(ask.as_bytes()), IoSlice::new(sent)];
    sendmsg::<()>(socket, &pieces, &[], MsgFlags::MSG_NOSIGNAL, None)?;
    let mut answer = Reply::default();
    let mut space = nix::cmsg_space!(std::os::fd::RawFd);
    let mut pieces = [IoSliceMut::new(answer.as_mut_bytes()), IoSliceMut::new(buffer)];
    let got = recvmsg::<()>(socket, &mut pieces, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fd = None;
    for message in got.cmsgs()? {
        if let ControlMessageOwned::ScmRights(all) = message {
            // SAFETY: the kernel has just made it for us.
            fd = all.first().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) });
        }
    }
    let whole = got.bytes >= size_of::<Reply>();
    whole.then_some((answer, fd)).ok_or(Errno::EPIPE)
}
