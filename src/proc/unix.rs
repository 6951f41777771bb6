// SPDX-License-Identifier: LGPL-2.1-only
//! The unix sockets of our network namespace, as the kernel tells of them (sock_diag(7), UNIX_DIAG).

use super::process::Process;
use super::slurp;
use super::text::{decimal, lines, words};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use std::collections::{HashMap, HashSet};
use std::os::fd::AsRawFd;

/// A socket that listens (include/net/tcp_states.h, TCP_LISTEN).
pub(crate) const LISTENS: u8 = 10;

/// What is known of one socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unix {
    /// SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET.
    pub(crate) kind: u8,
    /// TCP_ESTABLISHED (1), TCP_CLOSE (7) or [`LISTENS`].
    pub(crate) state: u8,
    /// Inode number of the socket that it is connected to; 0 of one that nobody has open any more, or has not yet.
    pub(crate) peer: Option<u64>,
    /// 1: it receives no more; 2: it sends no more.
    pub(crate) shutdown: u8,
    /// What it is bound to: a path, or a zero byte and an abstract name (unix(7)). An accepted socket has its listener's.
    pub(crate) name: Vec<u8>,
    /// The inode number of its file.
    pub(crate) file: Option<u32>,
    /// Bytes that can be read, of SOCK_DGRAM only those of the first message.
    pub(crate) readable: u32,
    /// Bytes that it has sent and nobody has read; of a listening socket the length of its queue as listen(2) has it.
    pub(crate) unread: u32,
    /// Of a listening socket, the inode numbers of those that wait to be accepted.
    pub(crate) waiting: Vec<u64>,
}

impl Unix {
    /// Whether it has its name by its own bind(2).
    pub(crate) fn is_bound(&self) -> bool {
        !self.name.is_empty() && (self.state != 1 || self.kind == 2)
    }
}

/// All of them by inode number; None where the kernel does not tell (CONFIG_UNIX_DIAG).
pub(crate) fn all() -> Option<HashMap<u64, Unix>> {
    let mut found = HashMap::new();
    ask(&request(), &mut |message| found.extend(one(message)))?;
    Some(found)
}

/// The inode numbers of those without a name in the network namespace of a process (/proc/PID/net/unix), which every
/// kernel tells.
pub(crate) fn unnamed(process: &Process) -> HashSet<u64> {
    let text = slurp(&process.path("net/unix")).unwrap_or_default();
    let one = |line| {
        let mut words = words(line).skip(6);
        let inode = decimal(words.next()?).ok()?;
        words.next().is_none().then_some(inode)
    };
    lines(&text).skip(1).filter_map(one).collect()
}

/// The bits that shutdown(2) has set of UDP sockets, of those that have any; none where the kernel does not tell
/// (CONFIG_INET_UDP_DIAG).
pub(crate) fn shut_datagrams() -> HashMap<u64, u8> {
    let mut found = HashMap::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for protocol in [libc::IPPROTO_UDP, libc::IPPROTO_UDPLITE] {
            let request = request_datagrams(family, protocol as u8);
            ask(&request, &mut |message| found.extend(shut(message)));
        }
    }
    found
}

/// Asks the kernel, and gives each of its messages to `take`; None where it does not answer.
fn ask(request: &[u8], take: &mut dyn FnMut(&[u8])) -> Option<()> {
    let (family, flags) = (AddressFamily::Netlink, SockFlag::SOCK_CLOEXEC);
    let line = socket(family, SockType::Raw, flags, SockProtocol::NetlinkSockDiag).ok()?;
    send(line.as_raw_fd(), request, MsgFlags::empty()).ok()?;
    let mut buffer = vec![0; 1 << 15];
    loop {
        let n = recv(line.as_raw_fd(), &mut buffer, MsgFlags::empty()).ok()?;
        match messages(&buffer[..n], take) {
            Read::More => {}
            Read::All => return Some(()),
            Read::Refused => return None,
        }
    }
}

/// What a datagram of the kernel says of those to come.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    More,
    All,
    Refused,
}

/// struct nlmsghdr and the family that follows it.
fn head<const LEN: usize>(family: AddressFamily) -> [u8; LEN] {
    const BY_FAMILY: u16 = 20;
    const REQUEST_DUMP: u16 = 0x301;
    let mut bytes = [0; LEN];
    bytes[0..4].copy_from_slice(&(LEN as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    bytes[16] = family as u8;
    bytes
}

/// struct inet_diag_req_v2: those of UDP in any state. What was shut down is told without being asked for.
fn request_datagrams(family: AddressFamily, protocol: u8) -> [u8; 72] {
    let mut bytes = head(family);
    bytes[17] = protocol;
    bytes[20..24].copy_from_slice(&u32::MAX.to_ne_bytes());
    bytes
}

/// struct inet_diag_msg and the attributes behind it: the inode number, and what was shut down.
fn shut(message: &[u8]) -> Option<(u64, u8)> {
    const SHUTDOWN: u16 = 8;
    let inode = word(message, 68)?;
    let (_, value) = attributes(message.get(72..)?).find(|(kind, _)| *kind == SHUTDOWN)?;
    value.first().filter(|bits| **bits != 0).map(|bits| (inode.into(), *bits))
}

/// The attributes of a message.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (len, kind) = (half(rest, 0)?, half(rest, 2)?);
        let value = rest.get(4..len.into())?;
        rest = rest.get(usize::from(len).next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// struct unix_diag_req: names, files, peers, queues.
fn request() -> [u8; 40] {
    const SHOW: u32 = 0x1f;
    let mut bytes = head(AddressFamily::Unix);
    bytes[20..24].copy_from_slice(&u32::MAX.to_ne_bytes());
    bytes[28..32].copy_from_slice(&SHOW.to_ne_bytes());
    bytes
}

/// Reads what one datagram holds.
fn messages(mut bytes: &[u8], take: &mut dyn FnMut(&[u8])) -> Read {
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    while let (Some(len), Some(kind)) = (word(bytes, 0), half(bytes, 4)) {
        match (kind, bytes.get(16..len as usize)) {
            (DONE, _) => return Read::All,
            (ERROR, _) | (_, None) => return Read::Refused,
            (_, Some(message)) => take(message),
        }
        bytes = bytes.get((len as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    Read::More
}

/// struct unix_diag_msg and the attributes behind it.
fn one(message: &[u8]) -> Option<(u64, Unix)> {
    const NAME: u16 = 0;
    const FILE: u16 = 1;
    const PEER: u16 = 2;
    const WAITING: u16 = 3;
    const QUEUES: u16 = 4;
    const SHUTDOWN: u16 = 6;
    let mut unix = Unix { kind: *message.get(1)?, state: *message.get(2)?, ..Unix::default() };
    let inode = word(message, 4)?;
    for (kind, value) in attributes(message.get(16..)?) {
        match kind {
            NAME => unix.name = name(value),
            FILE => unix.file = word(value, 0),
            PEER => unix.peer = word(value, 0).map(u64::from),
            WAITING => {
                let inodes = value.chunks_exact(4).filter_map(|inode| word(inode, 0));
                unix.waiting = inodes.map(u64::from).collect();
            }
            QUEUES => (unix.readable, unix.unread) = (word(value, 0)?, word(value, 4)?),
            SHUTDOWN => unix.shutdown = *value.first()?,
            _ => {}
        }
    }
    Some((inode.into(), unix))
}

/// A path has a zero byte behind it.
fn name(value: &[u8]) -> Vec<u8> {
    match value.first() {
        Some(0) | None => value.to_vec(),
        Some(_) => value.split(|b| *b == 0).next().unwrap_or_default().to_vec(),
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|half| u16::from_ne_bytes(*half))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_pair() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(b"seven b").unwrap();
        a.shutdown(std::net::Shutdown::Write).unwrap();
        let inode = |s: &UnixStream| {
            std::fs::metadata(format!("/proc/self/fd/{}", s.as_raw_fd())).unwrap().ino()
        };
        let found = all().unwrap();
        let (one, other) = (&found[&inode(&a)], &found[&inode(&b)]);
        assert_eq!((one.kind, one.state, one.shutdown), (1, 1, 2));
        assert_eq!((one.peer, other.peer), (Some(inode(&b)), Some(inode(&a))));
        assert_eq!((other.readable, other.shutdown), (7, 1));
        assert!(!one.is_bound());
    }

    #[test]
    fn datagrams_that_were_shut_down() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(socket.local_addr().unwrap()).unwrap();
        let place = format!("/proc/self/fd/{}", socket.as_raw_fd());
        let inode = std::fs::metadata(place).unwrap().ino();
        let shut = || shut_datagrams().get(&inode).copied();
        assert_eq!(shut(), None);
        nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Write).unwrap();
        assert!(matches!(shut(), Some(2)) || all().is_none());
    }

    #[test]
    fn nonsense() {
        let mut found = 0;
        assert_eq!(messages(&[255; 64], &mut |_| found += 1), Read::Refused);
        assert_eq!(messages(&[1, 2, 3], &mut |_| found += 1), Read::More);
        assert_eq!(found, 0);
        assert_eq!(attributes(&[1, 0, 2, 0, 9]).count(), 0);
    }
}
