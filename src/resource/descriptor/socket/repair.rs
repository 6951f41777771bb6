// SPDX-License-Identifier: LGPL-2.1-only
//! A TCP connection looked at, and made, without the other end (tcp(7), TCP_REPAIR).
//!
//! Whoever closes a socket in this mode says nothing to the other end (net/ipv4/tcp.c, __tcp_close). What the other end
//! sends meanwhile must meet a socket, or it is answered with a reset: a filter that drops all has it come to nothing, and
//! the other end send it again.
//!
//! An end that has come cannot be made without the other: the sequence number counts it, and the program receives no
//! more (shutdown(2)), which reads the same.

use super::connect::Item;
use super::inet::{CLOSING, FIN_WAIT1, FIN_WAIT2, LAST_ACK, called};
use super::name::{bind, connect, new};
use super::options::{self, BEFORE_BIND, LATE, LOCKS, RCVBUF, REUSEADDR, SNDBUF, set_int};
use super::{drain, queue};
use crate::error::{Because, Error, Result};
use crate::proc::net::state;
use crate::resource::descriptor::{DescriptorKind, Origin, Restored, kind, pipe};
use crate::resource::plan::{Arena, Orders, Step};
use ckpt_abi::image::{KeptTcp, socket_flag};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use std::collections::HashSet;
use std::os::fd::{AsRawFd, OwnedFd};
use zerocopy::FromZeros;

/// Values of TCP_REPAIR: off with a look for the other end's window, on, and off without (include/uapi/linux/tcp.h).
const OFF: i32 = 0;
const ON: i32 = 1;
const OFF_SILENTLY: i32 = -1;
/// Values of TCP_REPAIR_QUEUE.
const NO_QUEUE: i32 = 0;
const COME: i32 = 1;
const SENT: i32 = 2;
/// What both ends can: bits of tcpi_options, and the options of a segment as TCP_REPAIR_OPTIONS has them.
const TIMESTAMPS: (u8, u32) = (1, 8);
const SACK: (u8, u32) = (2, 4);
const SCALES: (u8, u32) = (4, 3);
const SEGMENT: u32 = 2;
/// The most that one call puts into a queue: the kernel takes it in one piece of memory.
const PIECE: usize = 1 << 14;
/// Room beside that of the bytes, in bytes.
const MARGIN: usize = 1 << 16;
/// Why one cannot be looked at to which something comes all the time.
const RESTLESS: &str = "it does not come to rest";
const FLAGS: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_NOSIGNAL);

/// A connection as it can be made again.
pub(super) struct Captured {
    pub(super) kept: KeptTcp,
    /// What the other end has not acknowledged.
    pub(super) sent: Vec<u8>,
    /// What can be read.
    pub(super) come: Vec<u8>,
}

/// Whether we may do this to connections of our network namespace.
pub(crate) fn is_allowed() -> bool {
    let made = new(libc::AF_INET as u32, libc::SOCK_STREAM, 0);
    made.is_ok_and(|made| set_int(&made, options::REPAIR, ON).is_ok())
}

/// Whether a connection in this state can be made again.
pub(super) fn is_known(own: u8) -> bool {
    let sent_all = matches!(own, FIN_WAIT1 | FIN_WAIT2 | LAST_ACK | CLOSING);
    sent_all || matches!(own, state::ESTABLISHED | state::CLOSE_WAIT)
}

/// Whether the other end has sent its end.
fn has_ended(own: u32) -> bool {
    matches!(own as u8, state::CLOSE_WAIT | LAST_ACK | CLOSING)
}

/// Looks at a connection that hears nothing and whose program stands still. It is not in repair in the end.
///
/// # Errors
/// It has come to its end, or the kernel refuses.
pub(super) fn capture(fd: &OwnedFd) -> Result<Captured> {
    let why = || "it cannot be looked at";
    let reuse = options::get(fd, REUSEADDR).unwrap_or(0);
    set_int(fd, options::REPAIR, ON).because(why)?;
    // What had just come to the filter may still be on its way to the queue.
    const TIMES: usize = 100;
    let mut captured = Err(Error::new(RESTLESS));
    for _ in 0..TIMES {
        let before = marks(fd).because(why);
        captured = look(fd)
            .and_then(|seen| Ok((seen, before? == marks(fd).because(why)?)))
            .and_then(|(seen, rests)| if rests { Ok(seen) } else { Err(Error::new(RESTLESS)) });
        if captured.is_ok() {
            break;
        }
    }
    let _ = set_int(fd, options::REPAIR, OFF_SILENTLY);
    // The kernel forgets it then (net/ipv4/tcp.c, TCP_REPAIR_OFF).
    let _ = set_int(fd, REUSEADDR, reuse);
    captured
}

/// Where the queues end and begin.
fn marks(fd: &OwnedFd) -> nix::Result<[u32; 4]> {
    Ok([end_of(fd, SENT)?, end_of(fd, COME)?, drain::unsent(fd) as u32, info(fd)[0].into()])
}

/// The sequence number behind a queue.
fn end_of(fd: &OwnedFd, which: i32) -> nix::Result<u32> {
    set_int(fd, options::REPAIR_QUEUE, which)?;
    let mut value = [0; 4];
    match options::ask(fd, options::QUEUE_SEQ, &mut value) {
        true => Ok(u32::from_ne_bytes(value)),
        false => Err(Errno::EINVAL),
    }
}

/// The beginning of struct tcp_info.
fn info(fd: &OwnedFd) -> [u8; 8] {
    let mut info = [0; 8];
    options::ask(fd, options::INFO, &mut info);
    info
}

fn look(fd: &OwnedFd) -> Result<Captured> {
    let why = || "it cannot be looked at";
    let info = info(fd);
    if !is_known(info[0]) {
        return Err(Error::new("it has ended"));
    }
    let own = info[0];
    let sent_all = matches!(own, FIN_WAIT1 | FIN_WAIT2 | LAST_ACK | CLOSING);
    // An end that is not acknowledged counts as a byte.
    let end = usize::from(sent_all && own != FIN_WAIT2);
    let unacknowledged = drain::unsent(fd).checked_sub(end);
    let unacknowledged = unacknowledged.ok_or_else(|| Error::new(RESTLESS))?;
    let last = end_of(fd, SENT).because(why)?;
    let mut sent = vec![0; unacknowledged];
    if !sent.is_empty() {
        let seen = recv(fd.as_raw_fd(), &mut sent, MsgFlags::MSG_PEEK | FLAGS).because(why)?;
        if seen != unacknowledged {
            return Err(Error::new("not all of it can be looked at"));
        }
    }
    let behind = end_of(fd, COME).because(why)?;
    let waiting = queue::stream(fd, drain::readable(fd))?;
    if waiting.unseen || queue::answers(fd, libc::POLLPRI) {
        return Err(Error::new("urgent data waits in it"));
    }
    let come: Vec<u8> = waiting.messages.into_iter().flat_map(|message| message.bytes).collect();
    if come.len() != drain::readable(fd) {
        return Err(Error::new("not all of it can be looked at"));
    }
    let mut window = [[0; 4]; 5];
    let asked = options::ask(fd, options::REPAIR_WINDOW, window.as_flattened_mut());
    let number = |option| options::get(fd, option).map(i32::cast_unsigned);
    let (Some(segment), Some(timestamp), true) =
        (number(options::MAXSEG), number(options::TIMESTAMP), asked)
    else {
        return Err(Error::new("this kernel does not tell of its window"));
    };
    let kept = KeptTcp {
        state: own.into(),
        send: last.wrapping_sub(u32::from(sent_all)).wrapping_sub(sent.len() as u32),
        receive: behind.wrapping_sub(come.len() as u32),
        segment,
        options: info[5].into(),
        scales: u32::from(info[6] & 15) | u32::from(info[6] >> 4) << 16,
        timestamp,
        window: window.map(u32::from_ne_bytes),
        ..KeptTcp::new_zeroed()
    };
    Ok(Captured { kept, sent, come })
}

/// The values of the options in [`LATE`].
pub(super) fn late(fd: &OwnedFd) -> [i32; 3] {
    LATE.map(|option| options::get(fd, option).unwrap_or(0))
}

/// Has a connection hear nothing, and not end by that.
///
/// # Errors
/// The kernel refuses.
pub(super) fn deafen(fd: &OwnedFd) -> nix::Result<()> {
    let [_, lasting @ ..] = LATE;
    for option in lasting {
        let _ = set_int(fd, option, 0);
    }
    options::deafen(fd, true)
}

/// Has a connection that was looked at hear again, and ask where the other end is by now.
pub(super) fn undo(fd: &OwnedFd, late: [i32; 3]) {
    let _ = options::deafen(fd, false);
    let _ = set_int(fd, options::REPAIR, ON);
    let _ = set_int(fd, options::REPAIR, OFF);
    for (option, value) in LATE.into_iter().zip(late) {
        let _ = set_int(fd, option, value);
    }
}

/// Has a connection say nothing when it is closed.
pub(super) fn silence(fd: &OwnedFd) {
    let _ = set_int(fd, options::REPAIR, ON);
}

/// Whether the kernel has given a connection up.
pub(super) fn is_over(fd: &OwnedFd) -> bool {
    info(fd)[0] == state::CLOSE
}

/// Resets a connection, whoever else has it.
pub(super) fn reset(fd: &OwnedFd) {
    let _ = set_int(fd, options::REPAIR, OFF_SILENTLY);
    // AF_UNSPEC (tcp(7); net/ipv4/tcp.c, tcp_disconnect).
    let _ = connect(fd, &[0; 16]);
}

/// Whether a connection is silent still.
pub(super) fn is_silent(fd: &OwnedFd) -> bool {
    options::get(fd, options::REPAIR) == Some(ON)
}

/// Whether it is one between these names that goes on.
pub(super) fn is(fd: &OwnedFd, item: &Item) -> bool {
    let named = |peer| super::inet::named(fd, peer);
    is_known(info(fd)[0]) && named(false) == item.local && named(true) == item.remote
}

/// Makes a connection again, which hears and says nothing yet.
///
/// # Errors
/// Its address or port cannot be had, and what the kernel refuses.
pub(super) fn make(item: &Item, kept: &KeptTcp, sent: &[u8]) -> Result<OwnedFd> {
    let line =
        || format!("the connection from {} to {}", called(&item.local), called(&item.remote));
    let end = item.make()?;
    options::deafen(&end, true).because(line)?;
    set_int(&end, options::REPAIR, ON).because(line)?;
    let _ = options::restore(&end, &item.options, &BEFORE_BIND);
    if item.is(socket_flag::FOREIGN) {
        let _ = set_int(&end, options::FREEBIND, 1);
    }
    let refused = |errno| match errno {
        Errno::EADDRNOTAVAIL | Errno::EADDRINUSE => {
            let text = format!("{} is there already", line());
            Error::new(text).hint("end what has it: the program that was saved, or ckpt-tcp, which holds it for a later checkpoint; or restart that one, or have the connections reset (--keep-tcp=0)")
        }
        errno => Error::new(format!("cannot make {}: {}", line(), errno.desc())),
    };
    bind(&end, &item.local).map_err(refused)?;
    begin(&end, SENT, kept.send).because(line)?;
    begin(&end, COME, kept.receive).because(line)?;
    connect(&end, &item.remote).map_err(refused)?;
    let mut able: Vec<[u32; 2]> = vec![[SEGMENT, kept.segment]];
    for ((bit, option), value) in [(SCALES, kept.scales), (SACK, 0), (TIMESTAMPS, 0)] {
        able.extend((kept.options as u8 & bit != 0).then_some([option, value]));
    }
    let able: Vec<u8> = able.as_flattened().iter().flat_map(|word| word.to_ne_bytes()).collect();
    options::set(&end, options::REPAIR_OPTIONS, &able).because(line)?;
    if kept.options as u8 & TIMESTAMPS.0 != 0 {
        set_int(&end, options::TIMESTAMP, kept.timestamp.cast_signed()).because(line)?;
    }
    let come: Vec<u8> = item.messages.iter().flat_map(|m| m.bytes.iter().copied()).collect();
    fill(&end, COME, RCVBUF, &come).because(line)?;
    fill(&end, SENT, SNDBUF, sent).because(line)?;
    if matches!(kept.state as u8, FIN_WAIT1 | FIN_WAIT2 | LAST_ACK | CLOSING) {
        set_int(&end, options::REPAIR_QUEUE, SENT).because(line)?;
        let _ = shutdown(end.as_raw_fd(), Shutdown::Write);
    }
    if has_ended(kept.state) || item.socket.shutdown & 1 != 0 {
        let _ = shutdown(end.as_raw_fd(), Shutdown::Read);
    }
    set_int(&end, options::REPAIR_QUEUE, NO_QUEUE).because(line)?;
    let window: Vec<u8> = kept.window.iter().flat_map(|word| word.to_ne_bytes()).collect();
    options::set(&end, options::REPAIR_WINDOW, &window).because(line)?;
    Ok(end)
}

/// Says where a queue begins.
fn begin(end: &OwnedFd, which: i32, number: u32) -> nix::Result<()> {
    set_int(end, options::REPAIR_QUEUE, which)?;
    set_int(end, options::QUEUE_SEQ, number.cast_signed())
}

/// Puts bytes into a queue, whose size is what it was in the end. What was to be sent counts as sent and lost, which the
/// kernel sees to.
fn fill(end: &OwnedFd, which: i32, buffer: i32, bytes: &[u8]) -> nix::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let (size, locks) = (options::get(end, buffer), options::get(end, LOCKS));
    // What the kernel's own records take may be as much again.
    let wanted = i32::try_from(bytes.len() * 4 + MARGIN).unwrap_or(i32::MAX / 2);
    options::enlarge(end, buffer, wanted);
    set_int(end, options::REPAIR_QUEUE, which)?;
    let mut left = bytes;
    while !left.is_empty() {
        let piece = &left[..left.len().min(PIECE)];
        left = &left[send(end.as_raw_fd(), piece, FLAGS)?..];
    }
    if let (Some(size), Some(locks)) = (size, locks) {
        let _ = options::change(end, buffer, &size.to_ne_bytes());
        let _ = set_int(end, LOCKS, locks);
    }
    Ok(())
}

/// Orders that let the connections go on that were made again or had from their holder: behind them these are the program's.
/// They are those among `led` that no other process sees to.
/// `content` has their records.
///
/// # Errors
/// A damaged image.
pub(crate) fn let_go(
    all: &[Restored],
    led: &HashSet<u32>,
    content: impl Fn(u32) -> Result<Vec<u8>>,
    arena: &mut Arena,
) -> Result<Orders> {
    let mut orders = Orders::default();
    let is_kept = |one: &&Restored| match &one.origin {
        Origin::Own(end) => {
            led.contains(&one.record.fd)
                && kind(&one.record) == DescriptorKind::Socket
                && is_silent(end)
        }
        _ => false,
    };
    for Restored { record, .. } in all.iter().filter(is_kept) {
        let bytes = content(record.content)?;
        let pieces = pipe::unframed(&bytes).unwrap_or_default();
        let late = options::late(pieces.get(2).copied().unwrap_or_default());
        let first = [(options::DETACH, 0), (options::REPAIR, OFF)];
        for (option, value) in first.into_iter().chain(LATE.into_iter().zip(late)) {
            let at = arena.value(&value)?;
            let args = [record.fd, (option >> 16) as u32, (option & 0xffff) as u32].map(u64::from);
            let args = [args[0], args[1], args[2], at, size_of::<i32>() as u64];
            orders.call(Step::Connection, libc::SYS_setsockopt, &args);
        }
    }
    Ok(orders)
}

/// Bytes of the plan that a descriptor takes at most.
pub(crate) const ROOM: u64 = 1024;
