// SPDX-License-Identifier: LGPL-2.1-only
//! What waits in a socket to be read. It stays there.
//!
//! # Safety
//! The system call writes into buffers of our own, whose lengths it is given. Descriptors that come along are ours.
#![allow(unsafe_code)]

use super::minder::Minder;
use super::options::{PEEK_OFF, get, set_int};
use crate::error::{Because, Result};
use crate::fault::{Point, reach};
use crate::proc::fds::UNDER_WAY;
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A message; of a stream, all that there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    /// The name of its sender, if that has one: of a unix socket alone, else with the family (struct sockaddr).
    pub(super) from: Vec<u8>,
    /// The message.
    pub(super) bytes: Vec<u8>,
    /// The descriptors that come with it (SCM_RIGHTS), by their numbers, of which each has [`UNDER_WAY`].
    pub(super) rights: Vec<u32>,
    /// Its sender's process, user and group (SCM_CREDENTIALS); a process 0 of one that the reader does not learn.
    pub(super) sender: [u32; 3],
}

impl Message {
    /// One without descriptors.
    pub(super) fn of(from: Vec<u8>, bytes: Vec<u8>) -> Self {
        Self { from, bytes, ..Self::default() }
    }
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// The messages.
    pub(super) messages: Vec<Message>,
    /// The descriptors that come with them, held by us.
    pub(super) held: Vec<OwnedFd>,
    /// More come with one than we could have, or urgent data lies beside them.
    pub(super) unseen: bool,
    /// The reader would learn that somebody has sent one whom nobody knows, or get a descriptor of the sender (SCM_PIDFD).
    pub(super) unknown_sender: bool,
    /// An empty one that an earlier look has seen may be among them, or was read.
    pub(super) doubtful: bool,
}

/// Looks into a stream of which `readable` bytes can be read.
///
/// # Errors
/// The kernel refuses.
pub(super) fn stream(fd: &OwnedFd, readable: usize) -> Result<Waiting> {
    let mut waiting = Waiting::default();
    if readable == 0 {
        return Ok(waiting);
    }
    let why = || "cannot look into a socket";
    // One byte of urgent data lies beside the others.
    let mut urgent = [0];
    waiting.unseen = look(fd, &mut urgent, libc::MSG_OOB).is_ok();
    let mut bytes = vec![0; readable];
    let mut done = 0;
    // A look ends where another sender's bytes begin, if the reader learns who sends (SO_PASSCRED), and behind those that
    // were sent with descriptors.
    let mut offset = None;
    let (mut plain, mut sender) = (0, [0; 3]);
    let message =
        |sender, bytes: &[u8]| Message { sender, ..Message::of(Vec::new(), bytes.to_vec()) };
    while done < readable && !waiting.unseen {
        if done > 0 || get(fd, PEEK_OFF).is_some_and(|at| at != -1) {
            let offset = offset.get_or_insert_with(|| Offset::of(fd));
            offset.go(done).because(why)?;
        }
        let seen = look(fd, &mut bytes[done..], 0).because(why)?;
        if seen.len == 0 {
            break;
        }
        if seen.sender != sender {
            if done > plain {
                waiting.messages.push(message(sender, &bytes[plain..done]));
            }
            (plain, sender) = (done, seen.sender);
        }
        if !seen.rights.is_empty() {
            let offset = offset.get_or_insert_with(|| Offset::of(fd));
            let begin = done + first_with_rights(offset, done, &mut bytes[done..done + seen.len])?;
            if begin > plain {
                waiting.messages.push(message(sender, &bytes[plain..begin]));
            }
            plain = done + seen.len;
            let rights = seen.rights.iter().map(number).collect();
            waiting.messages.push(Message { rights, ..message(sender, &bytes[begin..plain]) });
        }
        done += seen.len;
        waiting.note(seen);
    }
    if done > plain || waiting.messages.is_empty() {
        waiting.messages.push(message(sender, &bytes[plain..done]));
    }
    Ok(waiting)
}

/// Where the bytes begin that descriptors were sent with, at the end of those that a look at `at` shows: what was sent at
/// once is copied whole, or not shown at all (EFAULT; net/unix/af_unix.c, unix_stream_read_generic).
fn first_with_rights(offset: &mut Offset<'_>, at: usize, bytes: &mut [u8]) -> Result<usize> {
    let nowhere = libc::iovec { iov_base: std::ptr::dangling_mut::<u8>().cast(), iov_len: 1 };
    let room = bytes.len() - 1;
    let room = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: room };
    let mut pieces = [room, nowhere];
    // SAFETY: numbers and pointers, of which zeros are values.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    (header.msg_iov, header.msg_iovlen) = (pieces.as_mut_ptr(), 2);
    offset.go(at).because(|| "cannot look into a socket")?;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the kernel writes into the buffer, and faults at the second piece: no page is at address 1.
    let seen = unsafe { libc::recvmsg(offset.fd.as_raw_fd(), &raw mut header, flags) };
    match Errno::result(seen) {
        Ok(before) => Ok(before.unsigned_abs()),
        Err(Errno::EFAULT) => Ok(0),
        Err(e) => Err(e).because(|| "cannot look into a socket"),
    }
}

/// The number of what is under way, for all who look.
fn number(held: &OwnedFd) -> u32 {
    held.as_raw_fd().cast_unsigned() | UNDER_WAY
}

/// What comes first to be read, of a socket whose users go on: to look further, where looks begin would have to change
/// (SO_PEEK_OFF), which they share.
pub(super) fn glance(fd: &OwnedFd) -> Waiting {
    let mut waiting = Waiting::default();
    let mut buffer = [0; 1];
    if get(fd, PEEK_OFF).is_none_or(|at| at < 0)
        && answers(fd, libc::POLLIN)
        && let Ok(seen) = look(fd, &mut buffer, libc::MSG_TRUNC)
    {
        waiting.note(seen);
    }
    waiting.held.clear();
    waiting
}

/// Looks at the messages of a socket that keeps them apart; `ended` says of one that receives no more how many bytes are
/// left (behind the last one its reader sees its end, which is like an empty message).
///
/// An empty message is shown once to those who look at a place (SO_PEEK_OFF; net/core/datagram.c,
/// __skb_try_recv_from_queue), later only where it comes first, to those who do not. So what was looked at is noted.
///
/// # Errors
/// The kernel refuses.
pub(super) fn messages(fd: &OwnedFd, ended: Option<usize>) -> Result<Waiting> {
    let mut waiting = Waiting::default();
    let mut offset = Offset::of(fd);
    let known = offset.empties();
    if !answers(fd, libc::POLLIN) {
        offset.note_empties(0);
        return Ok(waiting);
    }
    let why = || "cannot look into a socket";
    let (mut at, mut buffer) = (0, vec![0; 1 << 16]);
    while !waiting.unseen && ended.is_none_or(|all| at < all) {
        offset.go(at).because(why)?;
        let seen = match look(fd, &mut buffer, libc::MSG_TRUNC) {
            Ok(seen) => seen,
            Err(Errno::EAGAIN) => break,
            Err(e) => return Err(e).because(why),
        };
        if seen.len > buffer.len() {
            buffer.resize(seen.len, 0);
            continue;
        }
        at += seen.len;
        waiting.messages.push(seen.message(&buffer));
        waiting.note(seen);
    }
    let is_empty = |message: &Message| message.bytes.is_empty();
    let seen = waiting.messages.iter().filter(|message| is_empty(message)).count();
    let mut hidden = 0;
    if ended.is_none_or(|all| all > 0) && !waiting.messages.first().is_some_and(is_empty) {
        offset.leave().because(why)?;
        if let Ok(first) = look(fd, &mut buffer, libc::MSG_TRUNC)
            && first.len == 0
        {
            hidden = 1;
            waiting.messages.insert(0, first.message(&[]));
            waiting.note(first);
        }
    }
    waiting.doubtful = known > hidden && !waiting.messages.is_empty();
    let left = if waiting.doubtful { known } else { hidden };
    offset.note_empties(left + seen);
    Ok(waiting)
}

/// What is said of a socket whose messages are doubtful.
pub(super) fn doubt(called: &str) -> String {
    format!(
        "an empty message that waits at {called}, if that has not read it since an earlier checkpoint"
    )
}

/// Whether poll(2) answers one of these.
pub(super) fn answers(fd: &OwnedFd, events: i16) -> bool {
    let mut polled = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: the kernel writes the answer.
    unsafe { libc::poll(&raw mut polled, 1, 0) > 0 && polled.revents & events != 0 }
}

impl Waiting {
    fn note(&mut self, seen: Seen) {
        self.unseen |= seen.truncated;
        self.unknown_sender |= seen.unknown_sender;
        self.held.extend(seen.rights);
    }
}

/// Where looks begin, which is the program's again in the end. One that looks from the beginning has any negative number
/// here: below -1 it says how many empty messages were looked at.
struct Offset<'a> {
    fd: &'a OwnedFd,
    before: i32,
    minder: Option<Minder>,
}

impl<'a> Offset<'a> {
    fn of(fd: &'a OwnedFd) -> Self {
        Self { fd, before: get(fd, PEEK_OFF).unwrap_or(-1), minder: None }
    }

    fn go(&mut self, at: usize) -> nix::Result<()> {
        if self.minder.is_none() {
            self.minder = Minder::of(self.fd, PEEK_OFF, self.before);
        }
        set_int(self.fd, PEEK_OFF, at as i32)?;
        reach(Point::Looking);
        Ok(())
    }

    fn leave(&mut self) -> nix::Result<()> {
        set_int(self.fd, PEEK_OFF, -1)
    }

    fn empties(&self) -> usize {
        (-1i32).saturating_sub(self.before).max(0).unsigned_abs() as usize
    }

    fn note_empties(&mut self, number: usize) {
        if self.before < 0 {
            self.before = -1 - i32::try_from(number).unwrap_or(i32::MAX - 1);
        }
    }
}

impl Drop for Offset<'_> {
    fn drop(&mut self) {
        if get(self.fd, PEEK_OFF).is_some_and(|is| is != self.before) {
            let _ = set_int(self.fd, PEEK_OFF, self.before);
        }
    }
}

/// What a look has shown.
struct Seen {
    len: usize,
    from: Vec<u8>,
    rights: Vec<OwnedFd>,
    /// There were more than this process may have.
    truncated: bool,
    /// As [`Message::sender`].
    sender: [u32; 3],
    unknown_sender: bool,
}

impl Seen {
    fn message(&self, buffer: &[u8]) -> Message {
        let rights = self.rights.iter().map(number).collect();
        let (from, sender) = (self.from.clone(), self.sender);
        Message { from, bytes: buffer[..self.len].to_vec(), rights, sender }
    }
}

/// recvmsg(2) with MSG_PEEK.
fn look(fd: &OwnedFd, buffer: &mut [u8], flags: i32) -> nix::Result<Seen> {
    let mut name = [0u8; 128];
    let mut control = [0u64; 256];
    let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: numbers and pointers, of which zeros are values.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_namelen = name.len() as u32;
    header.msg_iov = &raw mut piece;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    let flags = flags | libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the kernel writes into the buffers above, within their lengths.
    let result = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags) };
    let len = Errno::result(result)?.unsigned_abs();
    let control: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let control = &control[..(header.msg_controllen as usize).min(control.len())];
    let (rights, sender, has_pidfd) = take(control);
    let unknown_sender = has_pidfd || sender.is_some_and(|sender| sender[0] == 0);
    let truncated = header.msg_flags & libc::MSG_CTRUNC != 0;
    let name = &name[..(header.msg_namelen as usize).min(name.len())];
    let from = match name.split_first_chunk() {
        Some((family, unix)) if i32::from(u16::from_ne_bytes(*family)) == libc::AF_UNIX => {
            trimmed(unix)
        }
        _ => name.to_vec(),
    };
    let sender = sender.unwrap_or_default();
    Ok(Seen { len, from, rights, truncated, sender, unknown_sender })
}

/// A path without the zero byte behind it.
fn trimmed(name: &[u8]) -> Vec<u8> {
    match name.first() {
        Some(0) | None => name.to_vec(),
        Some(_) => name.split(|b| *b == 0).next().unwrap_or_default().to_vec(),
    }
}

/// The descriptors among control messages (cmsg(3)) that were sent along, who is told to be the sender, and whether a
/// descriptor of that is among them.
fn take(mut control: &[u8]) -> (Vec<OwnedFd>, Option<[u32; 3]>, bool) {
    const HEAD: usize = 16;
    const PIDFD: i32 = 4;
    let (mut rights, mut sender, mut has_pidfd) = (Vec::new(), None, false);
    while let Some((head, _)) = control.split_first_chunk::<HEAD>() {
        let word = |at: usize| head[at..].first_chunk().map_or(0, |w| i32::from_ne_bytes(*w));
        let len = (word(0).unsigned_abs() as usize).clamp(HEAD, control.len());
        let (kind, value) = (word(12), &control[HEAD..len]);
        has_pidfd |= kind == PIDFD;
        if kind == libc::SCM_CREDENTIALS {
            let words = value.chunks_exact(4).filter_map(|n| n.first_chunk());
            let words: Vec<u32> = words.map(|n| u32::from_ne_bytes(*n)).collect();
            sender = words.first_chunk().copied();
        }
        if kind == libc::SCM_RIGHTS || kind == PIDFD {
            for number in value.chunks_exact(4).filter_map(|n| n.first_chunk()) {
                // SAFETY: the kernel has just made it for us.
                let ours = unsafe { OwnedFd::from_raw_fd(i32::from_ne_bytes(*number)) };
                rights.extend((kind == libc::SCM_RIGHTS).then_some(ours));
            }
        }
        control = control.get(len.next_multiple_of(8)..).unwrap_or_default();
    }
    (rights, sender, has_pidfd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn a_stream_stays() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(b"one").unwrap();
        a.write_all(b"two").unwrap();
        let b = OwnedFd::from(b);
        for _ in 0..2 {
            let waiting = stream(&b, 6).unwrap();
            assert_eq!(waiting.messages[0].bytes, b"onetwo");
            assert!(!waiting.unseen && !waiting.unknown_sender && waiting.held.is_empty());
        }
        let mut six = [0; 6];
        UnixStream::from(b).read_exact(&mut six).unwrap();
        assert_eq!(&six, b"onetwo");
    }

    #[test]
    fn descriptors_come_with_their_bytes() {
        use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
        let (mut a, b) = UnixStream::pair().unwrap();
        let (number, b) = (a.as_raw_fd(), OwnedFd::from(b));
        let send = |text: &[u8], rights: &[i32]| {
            let (piece, rights) =
                ([std::io::IoSlice::new(text)], [ControlMessage::ScmRights(rights)]);
            sendmsg::<()>(number, &piece, &rights, MsgFlags::empty(), None).unwrap();
        };
        send(b"0123456", &[0]);
        a.write_all(b"plain").unwrap();
        a.write_all(b"more").unwrap();
        send(b"with", &[0, 1]);
        send(b"x", &[2]);
        a.write_all(b"end").unwrap();
        let waiting = stream(&b, 24).unwrap();
        let seen = waiting.messages.iter().map(|m| (&m.bytes[..], m.rights.len()));
        let wanted: [(&[u8], usize); 5] =
            [(b"0123456", 1), (b"plainmore", 0), (b"with", 2), (b"x", 1), (b"end", 0)];
        assert!(seen.eq(wanted));
        assert_eq!(waiting.held.len(), 4);
        assert_eq!(get(&b, PEEK_OFF), Some(-1));
    }

    #[test]
    fn messages_stay() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let long = vec![7; 100_000];
        for message in [&b"one"[..], &long, b"three"] {
            a.send(message).unwrap();
        }
        let b = OwnedFd::from(b);
        for _ in 0..2 {
            let seen = messages(&b, None).unwrap().messages;
            let seen: Vec<_> = seen.iter().map(|m| &m.bytes[..]).collect();
            assert_eq!(seen, [&b"one"[..], &long, b"three"]);
        }
        assert_eq!(get(&b, PEEK_OFF), Some(-1));
        let mut three = [0; 10];
        assert_eq!(UnixDatagram::from(b).recv(&mut three).unwrap(), 3);
    }

    #[test]
    fn empty_messages_are_seen_again_or_doubted() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let sizes = |b: &OwnedFd| {
            let waiting = messages(b, None).unwrap();
            let sizes: Vec<_> = waiting.messages.iter().map(|m| m.bytes.len()).collect();
            (sizes, waiting.doubtful)
        };
        a.send(b"").unwrap();
        let b = OwnedFd::from(b);
        assert_eq!(sizes(&b), (vec![0], false));
        assert_eq!(sizes(&b), (vec![0], false));
        a.send(b"one").unwrap();
        a.send(b"").unwrap();
        assert_eq!(sizes(&b), (vec![0, 3, 0], false));
        // The last is nowhere to be seen.
        assert_eq!(sizes(&b), (vec![0, 3], true));
        let b = UnixDatagram::from(b);
        for size in [0, 3, 0] {
            assert_eq!(b.recv(&mut [0; 10]).unwrap(), size);
        }
        let b = OwnedFd::from(b);
        assert_eq!(sizes(&b), (vec![], false));
        assert_eq!(get(&b, PEEK_OFF), Some(-1));
    }
}
