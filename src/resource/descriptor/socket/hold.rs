// SPDX-License-Identifier: LGPL-2.1-only
//! The process that holds the connections of a checkpoint that ends its program (ckpt-tcp).
//!
//! It is made before anything is done to a connection. Should the dumper be killed, or fail, it gives the connections back
//! to the program as they were. When it is told that the program ends, it keeps them from being answered for with a
//! reset, and hands them to a restart on this machine, for as long as the other end would try (tcp_retries2 in tcp(7));
//! then, or when it is killed, they are gone without a word. In a session of its own nothing ends it that ends a group.
//!
//! # Safety
//! The child makes nothing but system calls, whose memory is its own: other threads of its maker may have held locks.
#![allow(unsafe_code)]

use super::{options, repair};
use crate::proc::fork::end;
use crate::resource::descriptor::numbers::close_others;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr,
    bind, connect, getsockopt, listen, recvmsg, shutdown, socket,
};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, geteuid, pipe2, read, setsid, write};
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long connections are held.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How often it is looked whether a restart has taken them, in milliseconds.
const LOOK: i32 = 50;
/// How often, whether the kernel has given some up, in milliseconds.
const GIVEN_UP: i32 = 2000;
/// What says that the program ends.
const ENDS: u8 = 1;

/// A connection, and what it had of [`options::LATE`].
pub(super) struct Held {
    pub(super) fd: OwnedFd,
    pub(super) late: [i32; 3],
    /// Which of them it is in the image.
    pub(super) place: u32,
}

/// Connections that hear nothing. They are given back when this is dropped.
pub(crate) struct Keeping {
    held: Vec<Held>,
    holder: i32,
    tell: Option<OwnedFd>,
}

/// Where a holder is found.
fn place(token: u64) -> nix::Result<UnixAddr> {
    UnixAddr::new_abstract(format!("ckpt-tcp-{token:016x}").as_bytes())
}

fn line() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
}

impl Keeping {
    /// Has a process see to these, which is found by a number.
    ///
    /// # Errors
    /// None can be made.
    pub(super) fn begin(held: Vec<Held>, token: u64) -> nix::Result<Self> {
        let door = line()?;
        bind(door.as_raw_fd(), &place(token)?)?;
        listen(&door, Backlog::new(4)?)?;
        let (hear, tell) = pipe2(OFlag::O_CLOEXEC)?;
        let (begins, begun) = pipe2(OFlag::O_CLOEXEC)?;
        let own = [door.as_raw_fd(), hear.as_raw_fd()];
        let kept: Vec<i32> = held.iter().map(|one| one.fd.as_raw_fd()).chain(own).collect();
        // SAFETY: a copy of this thread that goes on here, without an exit signal.
        match unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) } {
            0 => {
                let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
                let _ = setsid();
                let _ = nix::sys::prctl::set_name(c"ckpt-tcp");
                be_spared();
                close_others(kept);
                let mut byte = [0];
                match read(&hear, &mut byte) {
                    Ok(1) if byte[0] == ENDS => keep(held, &door),
                    _ => give_back(&held),
                }
                end(0)
            }
            holder if holder > 0 => {
                drop(begun);
                // It ends when the other has closed all that is not for it: the image, too, which nobody could execute.
                let _ = read(&begins, &mut [0]);
                Ok(Self { held, holder: holder as i32, tell: Some(tell) })
            }
            _ => Err(Errno::last()),
        }
    }

    /// The connections.
    pub(super) fn held(&self) -> &[Held] {
        &self.held
    }

    /// The program ends, whatever becomes of us.
    pub(crate) fn hold(mut self) {
        if let Some(tell) = self.tell.take() {
            let _ = write(&tell, &[ENDS]);
        }
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        let Some(tell) = self.tell.take() else { return };
        drop(tell);
        let (mut status, mut waited);
        loop {
            status = 0;
            // SAFETY: waits for the child.
            waited = unsafe { libc::waitpid(self.holder, &raw mut status, libc::__WCLONE) };
            if Errno::result(waited) != Err(Errno::EINTR) {
                break;
            }
        }
        // Somebody has killed it.
        if waited != self.holder || status != 0 {
            give_back(&self.held);
        }
    }
}

/// The dumper, whose child we are, is to end first where memory runs out: without us its connections would stay deaf.
fn be_spared() {
    let file = open(c"/proc/self/oom_score_adj", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty());
    let _ = file.map(|file| write(&file, b"0"));
}

fn give_back(held: &[Held]) {
    held.iter().for_each(|one| repair::undo(&one.fd, one.late));
}

/// Holds connections until a restart has them, or nobody wants them any more.
fn keep(mut held: Vec<Held>, door: &OwnedFd) {
    // What could not be looked at was given back.
    held.retain(|one| !options::is_unfiltered(&one.fd));
    held.iter().for_each(|one| repair::silence(&one.fd));
    let _ = chdir(c"/");
    // SAFETY: what the kernel does by itself.
    let _ = unsafe { signal(Signal::SIGTERM, SigHandler::SigDfl) };
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    let begun = Instant::now();
    let mut line: Option<OwnedFd> = None;
    // Who comes while another has them.
    let mut waiting = [const { None }; 8];
    let mut given = false;
    while let Some(left) = PATIENCE.checked_sub(begun.elapsed()).filter(|_| !held.is_empty()) {
        let wait = if given { LOOK } else { GIVEN_UP.min(left.as_millis() as i32 + 1) };
        let [comes, closed] = hear([Some(door), line.as_ref()], wait);
        if given && held.iter().any(|one| !repair::is_silent(&one.fd)) {
            return;
        }
        held.retain(|one| !repair::is_over(&one.fd));
        // Nobody says anything there.
        if closed {
            line = None;
        }
        if comes
            && let Some(new) = accept(door)
            && let Some(place) = waiting.iter_mut().find(|place| place.is_none())
        {
            *place = Some(new);
        }
        if line.is_none() {
            line = waiting.iter_mut().find_map(Option::take);
            given |= line.as_ref().is_some_and(|line| hand_over(&held, line));
            // Those are all.
            let _ = line.as_ref().map(|line| shutdown(line.as_raw_fd(), Shutdown::Write));
        }
    }
}

/// Which of them have something to be heard, or were closed.
fn hear<const N: usize>(fds: [Option<&OwnedFd>; N], wait: i32) -> [bool; N] {
    let mut polled = fds.map(|fd| libc::pollfd {
        fd: fd.map_or(-1, AsRawFd::as_raw_fd),
        events: libc::POLLIN,
        revents: 0,
    });
    // SAFETY: the kernel writes the answers.
    unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, wait) };
    polled.map(|one| one.revents != 0)
}

/// A restart of the same user: others are sent away.
fn accept(door: &OwnedFd) -> Option<OwnedFd> {
    let none = std::ptr::null_mut();
    // SAFETY: it writes nowhere.
    let fd = unsafe { libc::accept4(door.as_raw_fd(), none, none.cast(), libc::SOCK_CLOEXEC) };
    let fd = Errno::result(fd).ok()?;
    // SAFETY: the kernel has just made it for us.
    let line = unsafe { OwnedFd::from_raw_fd(fd) };
    is_ours(&line).then_some(line)
}

fn is_ours(line: &OwnedFd) -> bool {
    getsockopt(line, PeerCredentials).is_ok_and(|it| it.uid() == geteuid().as_raw())
}

/// Sends the connections, each with its place.
fn hand_over(held: &[Held], line: &OwnedFd) -> bool {
    held.iter().all(|one| {
        let mut number = one.place.to_ne_bytes();
        let mut piece = libc::iovec { iov_base: number.as_mut_ptr().cast(), iov_len: number.len() };
        // A struct cmsghdr and a descriptor (cmsg(3)).
        let mut control = [0u64; 3];
        control[0] = 20;
        control[1] = libc::SOL_SOCKET as u64 | (libc::SCM_RIGHTS as u64) << 32;
        control[2] = u64::from(one.fd.as_raw_fd().cast_unsigned());
        // SAFETY: numbers and pointers, of which zeros are values.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        (header.msg_iov, header.msg_iovlen) = (&raw mut piece, 1);
        (header.msg_control, header.msg_controllen) = (control.as_mut_ptr().cast(), 24);
        // SAFETY: the kernel reads what is described above.
        let sent =
            unsafe { libc::sendmsg(line.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
        sent == number.len() as isize
    })
}

/// Whether a holder has them, be it somebody else's.
pub(super) fn are_held(token: u64) -> bool {
    let met = line().and_then(|line| connect(line.as_raw_fd(), &place(token)?));
    met.is_ok()
}

/// The connections of a holder by their places, if there is one; it keeps them, and another restart from them, until they
/// go on or we end.
pub(super) fn taken(token: u64, count: usize) -> Vec<(u32, OwnedFd)> {
    let mut all = Vec::new();
    let Ok(line) = line() else { return all };
    // Another restart may have them, and others may be at the door.
    const SOON: i32 = 10_000;
    const PAUSE: Duration = Duration::from_millis(10);
    let begun = Instant::now();
    let met = place(token).and_then(|place| {
        nix::fcntl::fcntl(&line, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        loop {
            match connect(line.as_raw_fd(), &place) {
                Err(Errno::EAGAIN) if begun.elapsed().as_millis() < SOON as u128 => {
                    std::thread::sleep(PAUSE);
                }
                met => return met,
            }
        }
    });
    if met.is_err() || !is_ours(&line) {
        return all;
    }
    while all.len() < count && hear([Some(&line)], SOON) == [true] {
        let (mut number, mut space) = ([0; 4], nix::cmsg_space!(i32));
        let mut pieces = [IoSliceMut::new(&mut number)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let Ok(got) = recvmsg::<()>(line.as_raw_fd(), &mut pieces, Some(&mut space), flags) else {
            break;
        };
        let mut rights = got.cmsgs().into_iter().flatten();
        let Some(ControlMessageOwned::ScmRights(fds)) = rights.next() else { break };
        let Some(fd) = fds.first() else { break };
        // SAFETY: the kernel has just made it for us.
        let fd = unsafe { OwnedFd::from_raw_fd(*fd) };
        all.push((u32::from_ne_bytes(number), fd));
    }
    // It closes when we end, or become the program.
    std::mem::forget(line);
    all
}
