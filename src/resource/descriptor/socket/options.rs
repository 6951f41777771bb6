// SPDX-License-Identifier: LGPL-2.1-only
//! The options of a socket (socket(7), ip(7), ipv6(7), tcp(7), udp(7)).
//!
//! # Safety
//! The system calls read or write buffers of our own, whose lengths they are given.
#![allow(unsafe_code)]

use super::chosen::Chosen;
use super::multicast;
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsFd, AsRawFd};

/// An option as the image has it.
pub(super) const fn of(level: i32, option: i32) -> i32 {
    level << 16 | option
}

pub(super) const fn socket(option: i32) -> i32 {
    of(libc::SOL_SOCKET, option)
}

/// Where a peek begins, or a negative number (socket(7)): below -1 it is ours ([`super::queue`]).
pub(super) const PEEK_OFF: i32 = socket(42);
/// What can be done to a connection without the other end (tcp(7), TCP_REPAIR): on, one of its queues, where that begins,
/// what both ends can, its clock, and its window.
pub(super) const REPAIR: i32 = of(libc::IPPROTO_TCP, 19);
pub(super) const REPAIR_QUEUE: i32 = of(libc::IPPROTO_TCP, 20);
pub(super) const QUEUE_SEQ: i32 = of(libc::IPPROTO_TCP, 21);
pub(super) const REPAIR_OPTIONS: i32 = of(libc::IPPROTO_TCP, 22);
pub(super) const TIMESTAMP: i32 = of(libc::IPPROTO_TCP, 24);
pub(super) const REPAIR_WINDOW: i32 = of(libc::IPPROTO_TCP, 29);
pub(super) const MAXSEG: i32 = of(libc::IPPROTO_TCP, libc::TCP_MAXSEG);
const KEEPALIVE: i32 = socket(libc::SO_KEEPALIVE);
const USER_TIMEOUT: i32 = of(libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT);
/// Those by which the kernel ends a connection that hears nothing, or which TCP_REPAIR changes: one that is held has them
/// when it is let go. The last has probes sent by when the other end was heard last.
pub(super) const LATE: [i32; 3] = [REUSEADDR, USER_TIMEOUT, KEEPALIVE];
pub(super) const DETACH: i32 = socket(libc::SO_DETACH_FILTER);
/// To join a multicast group (MCAST_JOIN_GROUP). The image has the interface's name and the address.
pub(super) const JOIN4: i32 = of(libc::IPPROTO_IP, 42);
pub(super) const JOIN6: i32 = of(libc::IPPROTO_IPV6, 42);
/// Which sizes of buffers the program has chosen (SO_BUF_LOCK, Linux 5.14): 1 of what is sent, 2 of what comes.
pub(super) const LOCKS: i32 = socket(72);
pub(super) const RCVBUF: i32 = socket(libc::SO_RCVBUF);
pub(super) const SNDBUF: i32 = socket(libc::SO_SNDBUF);
pub(super) const RCVLOWAT: i32 = socket(libc::SO_RCVLOWAT);
pub(super) const REUSEADDR: i32 = socket(libc::SO_REUSEADDR);
pub(super) const LINGER: i32 = socket(libc::SO_LINGER);
pub(super) const SNDTIMEO: i32 = socket(libc::SO_SNDTIMEO);
pub(super) const DOMAIN: i32 = socket(libc::SO_DOMAIN);
pub(super) const TYPE: i32 = socket(libc::SO_TYPE);
/// Who has made both ends of a pair (SO_PEERCRED).
pub(super) const MAKER: i32 = socket(libc::SO_PEERCRED);
pub(super) const PROTOCOL: i32 = socket(libc::SO_PROTOCOL);
pub(super) const LISTENS: i32 = socket(libc::SO_ACCEPTCONN);
pub(super) const NODELAY: i32 = of(libc::IPPROTO_TCP, libc::TCP_NODELAY);
pub(super) const QUICKACK: i32 = of(libc::IPPROTO_TCP, libc::TCP_QUICKACK);
pub(super) const INFO: i32 = of(libc::IPPROTO_TCP, libc::TCP_INFO);
/// What a connection has above it (tcp(7), TCP_ULP): a name.
pub(super) const ULP: i32 = of(libc::IPPROTO_TCP, 31);
pub(super) const REUSEPORT: i32 = socket(libc::SO_REUSEPORT);
pub(super) const FREEBIND: i32 = of(libc::IPPROTO_IP, libc::IP_FREEBIND);
/// Has the port chosen when a connection is made, and from which range (two ports in one word, Linux 6.3).
pub(super) const NO_PORT: i32 = of(libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT);
pub(super) const PORT_RANGE: i32 = of(libc::IPPROTO_IP, 51);
/// What is bound can no more be changed in this.
const V6ONLY: i32 = of(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
/// How much a sender may have that is not sent (tcp(7), TCP_NOTSENT_LOWAT).
const UNSENT: i32 = of(libc::IPPROTO_TCP, 25);
/// A value of [`UNSENT`] that is ours.
const OURS: i32 = (1 << 17) - 1;
/// A filter of what comes (SO_ATTACH_FILTER; to ask it is SO_GET_FILTER). The image has first how many instructions it
/// has, then those, two in a value.
const FILTER: i32 = socket(26);
/// It stays for ever (SO_LOCK_FILTER).
const FILTER_STAYS: i32 = socket(44);
/// Those that bind(2) looks at.
pub(super) const BEFORE_BIND: [i32; 3] = [V6ONLY, FREEBIND, REUSEPORT];

/// Those that are saved, by level: an int each, but for [`WIDE`]. The kernel has no other way to ask for many of them at
/// once. What one sets another may change (IP_TOS and SO_PRIORITY): the last comes last.
const SAVED: [(i32, &[u8]); 9] = [
    // IP_TOS, TTL, HDRINCL, RECVOPTS, RETOPTS, PKTINFO, MTU_DISCOVER, RECVERR, RECVTTL, RECVTOS, FREEBIND, PASSSEC,
    // TRANSPARENT, RECVORIGDSTADDR, MINTTL, NODEFRAG, CHECKSUM, BIND_ADDRESS_NO_PORT, RECVFRAGSIZE, RECVERR_RFC4884,
    // MULTICAST_IF, _TTL, _LOOP, MULTICAST_ALL, UNICAST_IF, LOCAL_PORT_RANGE
    (
        libc::IPPROTO_IP,
        &[
            1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 15, 18, 19, 20, 21, 22, 23, 24, 25, 26, 32, 33, 34,
            49, 50, 51,
        ],
    ),
    // IPV6_2292PKTINFO, 2292HOPOPTS, 2292DSTOPTS, 2292RTHDR, CHECKSUM, 2292HOPLIMIT, FLOWINFO, UNICAST_HOPS, MULTICAST_IF,
    // _HOPS, _LOOP, MTU_DISCOVER, RECVERR, V6ONLY, MULTICAST_ALL, ROUTER_ALERT_ISOLATE, RECVERR_RFC4884, FLOWINFO_SEND,
    // HDRINCL, RECVPKTINFO, RECVHOPLIMIT, RECVHOPOPTS, RECVRTHDR, RECVDSTOPTS, RECVPATHMTU, DONTFRAG, RECVTCLASS, TCLASS,
    // AUTOFLOWLABEL, ADDR_PREFERENCES, MINHOPCOUNT, ORIGDSTADDR, TRANSPARENT, UNICAST_IF, RECVFRAGSIZE, FREEBIND
    (
        libc::IPPROTO_IPV6,
        &[
            2, 3, 4, 5, 7, 8, 11, 16, 17, 18, 19, 23, 25, 26, 29, 30, 31, 33, 36, 49, 51, 53, 56,
            58, 60, 62, 66, 67, 70, 72, 73, 74, 75, 76, 77, 78,
        ],
    ),
    // TCP_NODELAY, MAXSEG, CORK, KEEPIDLE, KEEPINTVL, KEEPCNT, SYNCNT, LINGER2, DEFER_ACCEPT, WINDOW_CLAMP, CONGESTION,
    // THIN_LINEAR_TIMEOUTS, USER_TIMEOUT, FASTOPEN, NOTSENT_LOWAT, SAVE_SYN, FASTOPEN_NO_COOKIE, INQ, TX_DELAY, RTO_MAX_MS,
    // RTO_MIN_US, DELACK_MAX_US
    (
        libc::IPPROTO_TCP,
        &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 16, 18, 23, 25, 27, 34, 36, 37, 44, 45, 46],
    ),
    // UDP_CORK, ENCAP, NO_CHECK6_TX, _RX, SEGMENT, GRO
    (libc::IPPROTO_UDP, &[1, 100, 101, 102, 103, 104]),
    // UDPLITE_SEND_CSCOV, RECV_CSCOV
    (libc::IPPROTO_UDPLITE, &[10, 11]),
    // ICMP_FILTER, and ICMPV6_FILTER
    (SOL_RAW, &[1]),
    (libc::IPPROTO_ICMPV6, &[1]),
    // NETLINK_PKTINFO, BROADCAST_ERROR, NO_ENOBUFS, LISTEN_ALL_NSID, CAP_ACK, EXT_ACK, GET_STRICT_CHK
    (libc::SOL_NETLINK, &[3, 4, 5, 8, 10, 11, 12]),
    // SO_DEBUG, REUSEADDR, DONTROUTE, BROADCAST, SNDBUF, RCVBUF, KEEPALIVE, OOBINLINE, NO_CHECK, PRIORITY, LINGER, REUSEPORT,
    // PASSCRED, RCVLOWAT, RCVTIMEO, SNDTIMEO, BINDTODEVICE, TIMESTAMP, PASSSEC, TIMESTAMPNS, MARK, TIMESTAMPING, RXQ_OVFL,
    // WIFI_STATUS, PEEK_OFF, NOFCS, SELECT_ERR_QUEUE, BUSY_POLL, MAX_PACING_RATE, INCOMING_CPU, ZEROCOPY, TXTIME,
    // TIMESTAMP_NEW, TIMESTAMPNS_NEW, TIMESTAMPING_NEW, PREFER_BUSY_POLL, BUF_LOCK, RESERVE_MEM, TXREHASH, RCVMARK, PASSPIDFD,
    // RCVPRIORITY, PASSRIGHTS
    (
        libc::SOL_SOCKET,
        &[
            1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 16, 18, 20, 21, 25, 29, 34, 35, 36, 37, 40,
            41, 42, 43, 45, 46, 47, 49, 60, 61, 63, 64, 65, 69, 72, 73, 74, 75, 76, 82, 83,
        ],
    ),
];

/// PACKET_AUXDATA, ORIGDEV, VERSION, RESERVE, LOSS, VNET_HDR, TIMESTAMP, FANOUT (which needs the others), QDISC_BYPASS,
/// IGNORE_OUTGOING: of packet(7) alone.
const PACKET: [u8; 10] = [8, 9, 10, 12, 14, 15, 17, 18, 20, 23];

/// Options of raw(7).
const SOL_RAW: i32 = 255;
/// To be told of a group (netlink(7), NETLINK_ADD_MEMBERSHIP), and which those are (NETLINK_LIST_MEMBERSHIPS).
const GROUP: i32 = of(libc::SOL_NETLINK, 1);
const GROUPS: i32 = of(libc::SOL_NETLINK, 9);

/// Those that no stream can be given; an accepted one has another value than a new one (net/ipv4/tcp_ipv4.c).
const MULTICAST: [i32; 4] = [
    of(libc::IPPROTO_IP, libc::IP_MULTICAST_IF),
    of(libc::IPPROTO_IP, libc::IP_MULTICAST_TTL),
    of(libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF),
    of(libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
];

/// What a kernel without them amounts to, where that is not 0: SO_MAX_PACING_RATE, INCOMING_CPU, TXREHASH, PASSRIGHTS,
/// TCP_RTO_MAX_MS, RTO_MIN_US, DELACK_MAX_US, IPV6_AUTOFLOWLABEL.
const USUAL: [(i32, i32); 8] = [
    (PACING, -1),
    (socket(49), -1),
    (socket(74), 1),
    (RIGHTS, 1),
    (of(libc::IPPROTO_TCP, 44), 120_000),
    (of(libc::IPPROTO_TCP, 45), 200_000),
    (of(libc::IPPROTO_TCP, 46), 200_000),
    (of(libc::IPPROTO_IPV6, 70), 1),
];

/// Whether descriptors may be sent there (SO_PASSRIGHTS, Linux 6.16): what had come before is sent anew.
const RIGHTS: i32 = socket(83);
/// Bytes a second, or -1.
const PACING: i32 = socket(47);
/// Those whose value is longer than an int: a struct icmp6_filter, a struct linger, a struct timeval, a name, a long, a
/// struct sock_txtime.
const WIDE: [(i32, usize); 10] = [
    (JOIN4, VALUE),
    (JOIN6, VALUE),
    (of(libc::IPPROTO_ICMPV6, 1), 32),
    (LINGER, 8),
    (PACING, 8),
    (socket(61), 8),
    (socket(libc::SO_RCVTIMEO), 16),
    (SNDTIMEO, 16),
    (socket(libc::SO_BINDTODEVICE), 16),
    (of(libc::IPPROTO_TCP, libc::TCP_CONGESTION), 16),
];

fn size(option: i32) -> usize {
    WIDE.iter().find(|(wide, _)| *wide == option).map_or(4, |(_, size)| *size)
}

/// The room that a value has.
pub(super) const VALUE: usize = 32;
/// The option and a value.
const ENTRY: usize = 4 + VALUE;

/// Asks for one into `value`; false where the kernel does not know it.
pub(super) fn ask(fd: impl AsFd, option: i32, value: &mut [u8]) -> bool {
    let mut len = value.len() as libc::socklen_t;
    let (at, number): (*mut u8, _) = (value.as_mut_ptr(), fd.as_fd().as_raw_fd());
    let (level, name) = (option >> 16, option & 0xffff);
    // SAFETY: the kernel writes at most `len` bytes of the value, and the length.
    unsafe { libc::getsockopt(number, level, name, at.cast(), &raw mut len) == 0 }
}

/// An int.
pub(super) fn get(fd: impl AsFd, option: i32) -> Option<i32> {
    let mut value = [0; 4];
    ask(fd, option, &mut value).then(|| i32::from_ne_bytes(value))
}

/// Sets one.
pub(super) fn set(fd: impl AsFd, option: i32, value: &[u8]) -> nix::Result<()> {
    let (at, len) = (value.as_ptr(), value.len() as libc::socklen_t);
    let number = fd.as_fd().as_raw_fd();
    let (level, name) = (option >> 16, option & 0xffff);
    // SAFETY: the kernel reads the value.
    let result = unsafe { libc::setsockopt(number, level, name, at.cast(), len) };
    Errno::result(result).map(drop)
}

/// Sets an int.
pub(super) fn set_int(fd: impl AsFd, option: i32, value: i32) -> nix::Result<()> {
    set(fd, option, &value.to_ne_bytes())
}

/// Has a connection reset when it is closed: nothing is left that keeps its ports (TIME_WAIT).
pub(super) fn end_at_once(fd: impl AsFd) {
    let at_once = [1i32.to_ne_bytes(), [0; 4]];
    let _ = set(fd, LINGER, at_once.as_flattened());
}

/// All of a socket.
pub(super) fn save(fd: impl AsFd) -> Vec<u8> {
    let fd = fd.as_fd();
    let mut bytes = Vec::new();
    let family = get(fd, DOMAIN);
    let packet = (family == Some(libc::AF_PACKET)).then_some((libc::SOL_PACKET, &PACKET[..]));
    let chosen = Chosen::of(fd);
    for (level, options) in SAVED.into_iter().chain(packet) {
        for option in options {
            let (option, mut value) = (of(level, (*option).into()), [0; VALUE]);
            let size = size(option);
            let told = ask(fd, option, &mut value[..size]) && chosen.has(option, &value[..size]);
            if told && !is_ours(option, &value) {
                bytes.extend(option.to_le_bytes());
                bytes.extend(value);
            }
        }
    }
    let mut groups = [0; 512];
    if family == Some(libc::AF_NETLINK) && ask(fd, GROUPS, &mut groups) {
        let has = |group: &u32| {
            let at = *group as usize - 1;
            groups[at / 8] >> (at % 8) & 1 != 0
        };
        for group in (1..=groups.len() as u32 * 8).filter(has) {
            let mut value = [0; VALUE];
            value[..4].copy_from_slice(&group.to_ne_bytes());
            bytes.extend(GROUP.to_le_bytes());
            bytes.extend(value);
        }
    }
    bytes
}

/// Sets those that a new socket does not have so, or only those in `only`. What becomes of the socket where the kernel
/// refuses one.
pub(super) fn restore(fd: impl AsFd, saved: &[u8], only: &[i32]) -> Vec<String> {
    let fd = fd.as_fd();
    let find = |wanted| entries(saved).find(|(option, _)| *option == wanted);
    let locks = find(LOCKS).and_then(|(_, value)| value.first().copied());
    let stream = get(fd, TYPE) == Some(libc::SOCK_STREAM);
    let mut refused = Vec::new();
    for (option, value) in entries(saved) {
        let known = match only {
            [] => {
                let late = matches!(option, LOCKS | V6ONLY | RIGHTS);
                !(late || stream && MULTICAST.contains(&option))
            }
            only => only.contains(&option),
        };
        if !known {
            continue;
        }
        if matches!(option, JOIN4 | JOIN6) {
            refused.extend(multicast::join(fd, option, value).err());
            continue;
        }
        let mut is = [0; VALUE];
        let asked = ask(fd, option, &mut is[..value.len()]);
        let differs = if asked { is[..value.len()] != *value } else { !is_usual(option, value) };
        if differs && chosen(fd, option, value, locks) && change(fd, option, value).is_err() {
            let (level, option) = (option >> 16, option & 0xffff);
            refused
                .push(format!("is without its option {option} of level {level} (setsockopt(2))"));
        }
    }
    if let Some(locks) = locks.filter(|_| only.is_empty()) {
        let _ = set_int(fd, LOCKS, locks.into());
    }
    refused
}

/// Lets a sender whose reader has got more room than its own fill that slowly, or as before: else each checkpoint of a
/// job whose reader is slow would find more under way.
pub(super) fn restrain(fd: impl AsFd + Copy, slow: bool) {
    match get(fd, UNSENT) {
        Some(0) if slow => drop(set_int(fd, UNSENT, OURS)),
        Some(OURS) if !slow => drop(set_int(fd, UNSENT, 0)),
        _ => {}
    }
}

fn is_ours(option: i32, value: &[u8]) -> bool {
    option == UNSENT && int(value) == OURS || option == PEEK_OFF && int(value) < -1
}

/// Whether an option says nothing that a kernel which does not know it would do otherwise.
pub(super) fn is_usual(option: i32, value: &[u8]) -> bool {
    value.iter().all(|byte| *byte == 0) || USUAL.contains(&(option, int(value)))
}

/// What was saved, without those in [`LATE`].
pub(super) fn early(saved: &[u8]) -> Vec<u8> {
    let is_late = |entry: &&[u8]| LATE.iter().any(|late| entry[..4] == late.to_le_bytes());
    saved.chunks_exact(ENTRY).filter(|entry| !is_late(entry)).flatten().copied().collect()
}

/// The values of those in [`LATE`] that were saved.
pub(super) fn late(saved: &[u8]) -> [i32; 3] {
    LATE.map(|late| {
        entries(saved).find(|(option, _)| *option == late).map_or(0, |(_, value)| int(value))
    })
}

/// Adds the filter of a socket to its options; false: it has one that nobody can read (SO_ATTACH_BPF).
pub(super) fn save_filter(fd: impl AsFd + Copy, saved: &mut Vec<u8>) -> bool {
    let mut len = 0;
    match filter(fd, &mut [], &mut len) {
        Ok(()) if len == 0 => return true,
        // A kernel without filters has nothing to say.
        Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => return true,
        Ok(()) => {}
        Err(_) => return false,
    }
    let mut code = vec![0; len as usize * INSTRUCTION];
    if filter(fd, &mut code, &mut len).is_err() {
        return false;
    }
    let stays = get(fd, FILTER_STAYS).unwrap_or(0);
    let mut first = [0; VALUE];
    first[..4].copy_from_slice(&len.to_le_bytes());
    first[4..8].copy_from_slice(&stays.to_le_bytes());
    for piece in std::iter::once(&first[..]).chain(code.chunks(VALUE)) {
        let mut value = [0; VALUE];
        value[..piece.len()].copy_from_slice(piece);
        saved.extend(FILTER.to_le_bytes());
        saved.extend(value);
    }
    true
}

/// Gives a socket what lets not all come to it: the filter that was saved, when what waits in it is there.
pub(super) fn restore_filter(fd: impl AsFd + Copy, saved: &[u8]) -> nix::Result<()> {
    let _ = restore(fd, saved, &[RIGHTS]);
    let entries = saved.chunks_exact(ENTRY).filter(|entry| entry[..4] == FILTER.to_le_bytes());
    let all: Vec<u8> = entries.flat_map(|entry| &entry[4..]).copied().collect();
    let Some((first, code)) = all.split_first_chunk::<VALUE>() else { return Ok(()) };
    let (len, stays) = (int(first), int(&first[4..]));
    if code.len() < len.unsigned_abs() as usize * INSTRUCTION {
        return Err(Errno::EINVAL);
    }
    attach(fd, &code[..len.unsigned_abs() as usize * INSTRUCTION])?;
    if stays != 0 { set_int(fd, FILTER_STAYS, 1) } else { Ok(()) }
}

/// Gives a socket a filter of these instructions.
fn attach(fd: impl AsFd, code: &[u8]) -> nix::Result<()> {
    let (at, len): (*const u8, _) = (code.as_ptr(), (code.len() / INSTRUCTION) as u16);
    let program = libc::sock_fprog { len, filter: at.cast_mut().cast() };
    let (level, number) = (libc::SOL_SOCKET, fd.as_fd().as_raw_fd());
    let (at, size): (*const libc::sock_fprog, _) = (&program, size_of_val(&program) as u32);
    // SAFETY: the kernel reads the program, and as many instructions as it says, which are there.
    let result = unsafe { libc::setsockopt(number, level, FILTER & 0xffff, at.cast(), size) };
    Errno::result(result).map(drop)
}

/// Whether nothing chooses what comes to a socket.
pub(super) fn is_unfiltered(fd: impl AsFd) -> bool {
    let mut len = 0;
    match filter(fd, &mut [], &mut len) {
        Ok(()) => len == 0,
        Err(errno) => matches!(errno, Errno::ENOPROTOOPT | Errno::EOPNOTSUPP),
    }
}

/// BPF_RET | BPF_K: keep 0 bytes. Where a jump would go counts for nothing, and says that it is ours.
const NOTHING: [u8; INSTRUCTION] = [6, 0, 0xc7, 0x4b, 0, 0, 0, 0];

/// Whether a socket hears nothing because we had it so ([`deafen`]).
pub(super) fn is_deafened(fd: impl AsFd + Copy) -> bool {
    let (mut len, mut code) = (0, [0; INSTRUCTION]);
    filter(fd, &mut [], &mut len).is_ok()
        && len == 1
        && filter(fd, &mut code, &mut len).is_ok()
        && code == NOTHING
}

/// Has a socket that is unfiltered hear nothing, not even what would be answered with a reset if it were not there; or
/// all again.
pub(super) fn deafen(fd: impl AsFd, deaf: bool) -> nix::Result<()> {
    if deaf { attach(fd, &NOTHING) } else { set_int(fd, DETACH, 0) }
}

/// Bytes of a struct sock_filter.
const INSTRUCTION: usize = 8;

/// Asks for the filter: for its length in instructions, or where `code` has room, for it.
fn filter(fd: impl AsFd, code: &mut [u8], len: &mut u32) -> nix::Result<()> {
    let at: *mut u8 = if code.is_empty() { std::ptr::null_mut() } else { code.as_mut_ptr() };
    let (level, number) = (libc::SOL_SOCKET, fd.as_fd().as_raw_fd());
    // SAFETY: the kernel writes no more than `len` instructions, for which there is room, and the length.
    let result =
        unsafe { libc::getsockopt(number, level, FILTER & 0xffff, at.cast(), &raw mut *len) };
    Errno::result(result).map(drop)
}

fn entries(saved: &[u8]) -> impl Iterator<Item = (i32, &[u8])> {
    saved.chunks_exact(ENTRY).filter_map(|entry| {
        let (option, value) = entry.split_first_chunk()?;
        let option = i32::from_le_bytes(*option);
        (option != FILTER).then_some((option, value.get(..size(option))?))
    })
}

/// Whether the program has chosen the size of a buffer. That of a TCP connection changes by itself until it is set: where
/// the kernel does not tell (SO_BUF_LOCK), one smaller than at the beginning was chosen.
fn chosen(fd: impl AsFd + Copy, option: i32, value: &[u8], locks: Option<u8>) -> bool {
    let lock = match option {
        SNDBUF => 1,
        RCVBUF => 2,
        _ => return true,
    };
    let grows = matches!(get(fd, PROTOCOL), Some(libc::IPPROTO_TCP | libc::IPPROTO_MPTCP));
    match locks {
        _ if !grows => true,
        Some(locks) => locks & lock != 0,
        None => get(fd, option).is_some_and(|is| int(value) < is),
    }
}

pub(super) fn int(value: &[u8]) -> i32 {
    value.first_chunk().map_or(0, |bytes| i32::from_le_bytes(*bytes))
}

/// The kernel doubles the sizes of buffers that it is given, and only privilege goes above its limits.
pub(super) fn change(fd: impl AsFd + Copy, option: i32, value: &[u8]) -> nix::Result<()> {
    if !matches!(option, SNDBUF | RCVBUF) {
        return set(fd, option, value);
    }
    let half = int(value) / 2;
    set_int(fd, forced(option), half).or_else(|_| set_int(fd, option, half))
}

/// Makes a buffer larger for `half` as many bytes, as far as the kernel lets.
pub(super) fn enlarge(fd: impl AsFd + Copy, option: i32, half: i32) {
    if set_int(fd, forced(option), half).is_ok() {
        return;
    }
    let limit = match option {
        SNDBUF => "/proc/sys/net/core/wmem_max",
        _ => "/proc/sys/net/core/rmem_max",
    };
    let limit = std::fs::read_to_string(limit).ok().and_then(|text| text.trim().parse().ok());
    if get(fd, option).is_some_and(|is| is / 2 < limit.unwrap_or(0).min(half)) {
        let _ = set_int(fd, option, half);
    }
}

const fn forced(option: i32) -> i32 {
    match option {
        SNDBUF => socket(libc::SO_SNDBUFFORCE),
        _ => socket(libc::SO_RCVBUFFORCE),
    }
}
