// SPDX-License-Identifier: LGPL-2.1-only
//! TCP and UDP sockets (tcp(7), udp(7)) that processes of the checkpoint have among themselves: connections both of whose
//! ends are theirs, with what is under way, those that wait to be accepted, those whose other end nobody has any more,
//! sockets that listen, and sockets that are not connected.
//!
//! # Safety
//! The system calls write into buffers of our own, whose lengths they are given.
#![allow(unsafe_code)]

use super::name::{bind, name_of, new};
use super::{Tie, arrived, is_inside, multicast, options, plain, queue, repair};
use crate::error::Result;
use crate::proc::Pid;
use crate::proc::fds::{Fd, UNDER_WAY};
use crate::proc::net::{self, Place, Tcp, state};
use crate::proc::unix;
use crate::ptrace::{borrowed, raw};
use crate::resource::descriptor::{Content, Look, Saving, Tables, file_type, pipe};
use ckpt_abi::image::{Socket, socket_flag};
use nix::errno::Errno;
use nix::libc;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use zerocopy::{FromZeros, IntoBytes};

/// The oldest kind of a packet socket (packet(7)), which has no name to bind it by.
const SOCK_PACKET: i32 = 10;

/// What a socket is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inet {
    /// A descriptor that leads to it, and whose.
    pub(super) at: (Pid, u32),
    pub(super) family: i32,
    pub(super) kind: i32,
    pub(super) protocol: i32,
    /// That of TCP; of UDP, ESTABLISHED or CLOSE.
    pub(super) state: u8,
    /// Its name (struct sockaddr).
    pub(super) local: Vec<u8>,
    /// That of the other end, if it is connected.
    pub(super) remote: Vec<u8>,
    /// Connections that wait to be accepted, and how many may.
    pub(super) queue: [u32; 2],
    /// A connection that has ended altogether.
    dead: bool,
    /// TCP with nothing above it: neither MPTCP nor TLS of the kernel (TCP_ULP).
    pub(super) plain: bool,
    /// Of UDP, what shutdown(2) has ended.
    shut: u8,
}

/// The address and the port of a name.
pub(super) fn place(name: &[u8]) -> Option<Place> {
    let (family, rest) = name.split_first_chunk()?;
    let (port, rest) = rest.split_first_chunk()?;
    let address = match i32::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET => rest.get(..4),
        libc::AF_INET6 => rest.get(4..20),
        _ => None,
    };
    Some((net::ip(address?)?, u16::from_be_bytes(*port)))
}

/// A name for people.
pub(super) fn called(name: &[u8]) -> String {
    place(name).map_or_else(String::new, |(ip, port)| SocketAddr::new(ip, port).to_string())
}

/// What getsockname(2) or getpeername(2) answers; empty if it is an error.
pub(super) fn named(fd: impl AsFd, peer: bool) -> Vec<u8> {
    let mut name = [0u8; 128];
    let mut len = name.len() as libc::socklen_t;
    let at = name.as_mut_ptr().cast();
    let ask = if peer { libc::getpeername } else { libc::getsockname };
    // SAFETY: the kernel writes at most `len` bytes of the name, and the length.
    let result = unsafe { ask(fd.as_fd().as_raw_fd(), at, &raw mut len) };
    if result == 0 { name[..(len as usize).min(name.len())].to_vec() } else { Vec::new() }
}

/// Those of all processes that stand still, by inode number.
pub(crate) fn all(tables: &Tables) -> HashMap<u64, Inet> {
    let mut found: HashMap<u64, Inet> = HashMap::new();
    for (pid, fd) in tables.everywhere() {
        let is_socket = file_type(fd.mode) == libc::S_IFSOCK;
        if is_socket && !tables.sockets().contains_key(&fd.inode) && !found.contains_key(&fd.inode)
        {
            let ours = raw::take_descriptor(pid, fd.number.cast_signed());
            // Of a dumper that was killed, and with it who would have given the connections back.
            let left = |ours: &OwnedFd| !tables.untouched && options::is_deafened(ours);
            ours.iter().filter(|ours| left(ours)).for_each(|ours| {
                repair::undo(ours, repair::late(ours));
            });
            let one = ours.ok().and_then(|ours| Inet::of(&ours, (pid, fd.number)));
            found.extend(one.map(|one| (fd.inode, one)));
        }
    }
    if found.values().any(|one| !one.is_tcp()) {
        let shut = unix::shut_datagrams();
        found.iter_mut().for_each(|(inode, one)| one.shut = shut.get(inode).copied().unwrap_or(0));
    }
    found
}

impl Inet {
    pub(super) fn of(fd: &OwnedFd, at: (Pid, u32)) -> Option<Self> {
        let asked = |option| options::get(fd, option);
        let (family, kind) = (asked(options::DOMAIN)?, asked(options::TYPE)?);
        let protocol = asked(options::PROTOCOL)?;
        let known = match family {
            libc::AF_INET | libc::AF_INET6 => matches!(
                (kind, protocol),
                (libc::SOCK_STREAM, libc::IPPROTO_TCP | libc::IPPROTO_MPTCP)
                    | (libc::SOCK_DGRAM | libc::SOCK_RAW, _)
            ),
            libc::AF_PACKET => kind != SOCK_PACKET,
            family => family == libc::AF_NETLINK,
        };
        let (local, remote) = (named(fd, false), named(fd, true));
        let mut one = Self { at, family, kind, protocol, local, remote, ..Self::default() };
        if !one.is_tcp() {
            one.state = if one.remote.is_empty() { state::CLOSE } else { state::ESTABLISHED };
            return known.then_some(one);
        }
        // struct tcp_info: the state, and of a listening socket tcpi_unacked and tcpi_sacked are its queue.
        let mut info = [0; 32];
        options::ask(fd, options::INFO, &mut info);
        let word = |at: usize| info[at..].first_chunk().map_or(0, |w| u32::from_ne_bytes(*w));
        (one.state, one.queue) = (info[0], [word(24), word(28)]);
        if asked(options::LISTENS) == Some(1) {
            one.state = state::LISTENS;
        }
        one.dead = one.state == state::CLOSE && queue::answers(fd, libc::POLLRDHUP);
        let mut above = [0; 16];
        options::ask(fd, options::ULP, &mut above);
        one.plain = one.protocol == libc::IPPROTO_TCP && above[0] == 0;
        known.then_some(one)
    }

    pub(super) fn is_tcp(&self) -> bool {
        self.kind == libc::SOCK_STREAM
    }

    pub(super) fn local(&self) -> Option<Place> {
        place(&self.local)
    }

    fn remote(&self) -> Option<Place> {
        place(&self.remote)
    }

    /// Whether it is of UDP (udp(7), udplite(7)).
    pub(super) fn is_udp(&self) -> bool {
        self.kind == libc::SOCK_DGRAM
            && matches!(self.protocol, libc::IPPROTO_UDP | libc::IPPROTO_UDPLITE)
    }

    /// Whether what is sent there comes to this socket.
    pub(super) fn receives(&self, at: Place) -> bool {
        (self.is_tcp() || self.is_udp())
            && self
                .local()
                .is_some_and(|(ip, port)| port == at.1 && (ip == at.0 || ip.is_unspecified()))
    }

    /// Whether it is the other end of a connection.
    fn is_peer(&self, of: &Self) -> bool {
        let ends = (self.local(), self.remote());
        self.plain && of.plain && ends.1.is_some() && (ends.1, ends.0) == (of.local(), of.remote())
    }

    /// Whether its other end is on this machine as far as its address tells.
    fn is_local(&self) -> bool {
        let (Some((here, _)), Some((there, _))) = (self.local(), self.remote()) else {
            return false;
        };
        there.is_loopback() || here == there
    }
}

/// The connections both of whose ends are held: a process and a number of each end.
pub(crate) fn connections(tables: &Tables) -> Vec<(Pid, u32)> {
    let all = tables.inet();
    let inside = |one: &&Inet| all.values().any(|other| one.is_peer(other));
    let is_held = |at: &(Pid, u32)| at.1 & UNDER_WAY == 0;
    all.values().filter(inside).map(|one| one.at).filter(is_held).collect()
}

/// Has a connection of a process reset when it is closed.
pub(crate) fn end_at_once((pid, fd): (Pid, u32)) {
    if let Ok(ours) = raw::take_descriptor(pid, fd.cast_signed()) {
        options::end_at_once(&ours);
    }
}

/// What there is of a socket, if it can be made again.
pub(super) fn judge<'a>(fd: &Fd, look: &'a Look<'_>) -> Option<(&'a Inet, Tie)> {
    if file_type(fd.mode) != libc::S_IFSOCK {
        return None;
    }
    let all = look.tables.inet();
    let own = all.get(&fd.inode)?;
    let mut inside =
        all.iter().filter(|(inode, _)| **inode != fd.inode && is_inside(**inode, look));
    let tie = match own.state {
        state::LISTENS => Tie::None,
        state::CLOSE if own.dead => Tie::Abandoned,
        state::CLOSE | state::CONNECTING => Tie::None,
        _ if !own.is_tcp() => Tie::None,
        _ if !own.plain => Tie::Outside,
        _ => match inside.find(|(_, other)| own.is_peer(other)) {
            Some((inode, _)) => Tie::Peer(*inode),
            None => alone(own, look),
        },
    };
    Some((own, tie))
}

/// The tie of a connection whose other end no process of the checkpoint has.
fn alone(own: &Inet, look: &Look<'_>) -> Tie {
    if !own.is_local() {
        return Tie::Outside;
    }
    match other_end(own, look) {
        None if own.state == state::CLOSE_WAIT => return Tie::Abandoned,
        None => return Tie::Outside,
        Some(other) if other.inode != 0 => return Tie::Outside,
        Some(other) if !matches!(other.state, state::ESTABLISHED | state::CLOSE_WAIT) => {
            return Tie::Abandoned;
        }
        Some(_) => {}
    }
    let Some(at) = own.remote() else { return Tie::Outside };
    let mut all = look.tables.inet().iter();
    let listens = |(inode, it): &(&u64, &Inet)| {
        it.state == state::LISTENS && it.receives(at) && is_inside(**inode, look)
    };
    all.find(listens).map_or(Tie::Outside, |(listener, _)| Tie::Waits(*listener, 0))
}

/// What the kernel tells of the other end of a connection that no process of the checkpoint has.
pub(super) fn other_end<'a>(own: &Inet, look: &'a Look<'_>) -> Option<&'a Tcp> {
    let ends = (own.local()?, own.remote()?);
    look.tables.tcp().iter().find(|other| (other.remote, other.local) == ends)
}

/// Whether a socket is bound to an address that this machine does not have (IP_FREEBIND).
fn is_foreign(own: &Inet) -> bool {
    if own.local().is_none_or(|(ip, _)| ip.is_unspecified() || ip.is_loopback()) {
        return false;
    }
    let mut name = own.local.clone();
    name[2..4].fill(0);
    let made = new(own.family as u32, own.kind, own.protocol);
    made.and_then(|made| bind(&made, &name)) == Err(Errno::EADDRNOTAVAIL)
}

/// What a TCP connection's own calls have ended of it (shutdown(2), from bit 0 on what it receives, and what it sends), of
/// which poll(2) says that it `hung_up`. Of one that the other end has not ended only its own call ends what it receives.
/// That end may have come with what was under way when the connection was first looked at.
fn shut_of(own: &Inet, ours: &OwnedFd, hung_up: bool) -> u32 {
    let now = Inet::of(ours, own.at).map_or(state::CLOSE, |now| now.state);
    let is_open = matches!(now, state::ESTABLISHED | FIN_WAIT1 | FIN_WAIT2);
    let has_sent = matches!(own.state, FIN_WAIT1 | FIN_WAIT2 | LAST_ACK | CLOSING);
    u32::from(hung_up && is_open) + 2 * u32::from(has_sent)
}

pub(super) fn save(
    fd: &Fd,
    own: &Inet,
    tie: Tie,
    look: &Look<'_>,
    saving: &mut Saving,
) -> Result<()> {
    let why = || format!("cannot look into the socket behind descriptor {}", fd.number);
    let ours = borrowed::look_into(look.process.pid(), fd.number, why)?;
    let mut socket = Socket {
        kind: own.kind as u32,
        family: own.family as u32,
        protocol: own.protocol as u32,
        ..Socket::new_zeroed()
    };
    let polled = |events: i16| queue::answers(&ours, events);
    let ported = own.is_tcp() || own.is_udp();
    let bound = ported && own.local().is_some_and(|(_, port)| port != 0);
    match (tie, own.state) {
        (_, state::LISTENS) => {
            (socket.flags, socket.backlog) =
                (socket_flag::LISTENS | socket_flag::BOUND, own.queue[1]);
        }
        (_, state::CONNECTING) => socket.flags = socket_flag::CONNECTS,
        (Tie::None, _) => socket.flags = if bound { socket_flag::BOUND } else { 0 },
        (Tie::Peer(peer), _) => socket.peer = peer,
        (Tie::Outside | Tie::Named(_), _) => {
            let ended = matches!(own.state, state::CLOSE_WAIT | LAST_ACK | CLOSING);
            socket.flags = socket_flag::ABANDONED | socket_flag::RESET | socket_flag::OUTSIDE;
            socket.flags |= if ended { socket_flag::ENDED } else { 0 };
            let may_go_on = own.plain && repair::is_known(own.state) && fd.number & UNDER_WAY == 0;
            match look.tables.keeps && may_go_on && options::is_unfiltered(&ours) {
                true => socket.flags |= socket_flag::KEPT,
                false => super::reset(fd, look, saving, &format!("TCP to {}", called(&own.remote))),
            }
        }
        (Tie::Abandoned, _) => {
            let reset = if polled(libc::POLLERR) { socket_flag::RESET } else { 0 };
            socket.flags = socket_flag::ABANDONED | reset;
        }
        (Tie::Waits(listener, _), _) => {
            // Nobody tells the order of the queue: that of their making is the nearest.
            (socket.flags, socket.peer, socket.place) =
                (socket_flag::WAITS, listener, fd.inode as u32);
        }
    }
    if socket.flags & socket_flag::BOUND != 0 && is_foreign(own) {
        socket.flags |= socket_flag::FOREIGN;
    }
    let waiting = match own.is_tcp() {
        true => arrived::of_stream(own, &ours, tie, look, saving)?,
        false if own.is_udp() => arrived::of_datagrams(own, &ours, look, saving)?,
        false => {
            plain::name_losses(own, &ours, saving);
            Vec::new()
        }
    };
    if own.is_tcp() && !matches!(own.state, state::LISTENS | state::CLOSE | state::CONNECTING) {
        socket.shutdown = shut_of(own, &ours, polled(libc::POLLRDHUP));
    }
    if own.dead {
        socket.shutdown = 3;
    }
    let mut options = super::save_options(&ours, saving);
    if !own.is_tcp() {
        socket.shutdown = own.shut.into();
        multicast::save(&ours, own.family, look, &mut options, saving);
    }
    let remote = match own.state {
        // It is not told before there is a connection.
        state::CONNECTING => {
            let line = look.tables.tcp().iter().find(|line| line.inode == fd.inode);
            line.map(|line| name_of(line.remote, socket.family)).unwrap_or_default()
        }
        _ if ported => own.remote.clone(),
        _ => plain::remote(own, fd.inode, look),
    };
    let mut pieces = vec![socket.as_bytes().to_vec(), own.local.clone(), options, remote];
    for message in waiting {
        pieces.extend((!own.is_tcp()).then_some(message.from));
        pieces.push(message.bytes);
    }
    saving.record.content = fd.number;
    saving.content = Some(Content { index: fd.number, bytes: pipe::framed(&pieces) });
    Ok(())
}

/// States of a connection that has sent its end (include/net/tcp_states.h).
pub(super) const FIN_WAIT1: u8 = 4;
pub(super) const FIN_WAIT2: u8 = 5;
pub(super) const LAST_ACK: u8 = 9;
pub(super) const CLOSING: u8 = 11;
