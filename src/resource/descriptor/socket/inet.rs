// SPDX-License-Identifier: LGPL-2.1-only
//! TCP and UDP sockets (tcp(7), udp(7)) that processes of the checkpoint have among themselves: connections both of whose
//! ends are theirs, with what is under way, those that wait to be accepted, those whose other end nobody has any more,
//! sockets that listen, and sockets that are not connected.
//!
//! # Safety
//! The system calls write into buffers of our own, whose lengths they are given.
#![allow(unsafe_code)]

use super::{Tie, drain, gone_client, is_inside, options, queue};
use crate::error::Result;
use crate::proc::Pid;
use crate::proc::fds::{Fd, UNDER_WAY};
use crate::proc::net::{self, Place, Tcp, state};
use crate::proc::unix;
use crate::ptrace::{borrowed, raw};
use crate::resource::descriptor::{Content, Look, Saving, Tables, file_type, pipe};
use ckpt_abi::image::{Socket, socket_flag};
use nix::libc;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use zerocopy::{FromZeros, IntoBytes};

/// What a socket is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inet {
    /// A descriptor that leads to it, and whose.
    at: (Pid, u32),
    family: i32,
    kind: i32,
    protocol: i32,
    /// That of TCP; of UDP, ESTABLISHED or CLOSE.
    state: u8,
    /// Its name (struct sockaddr).
    local: Vec<u8>,
    /// That of the other end, if it is connected.
    remote: Vec<u8>,
    /// Connections that wait to be accepted, and how many may.
    queue: [u32; 2],
    /// A connection that has ended altogether.
    dead: bool,
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
pub(super) fn named(fd: &OwnedFd, peer: bool) -> Vec<u8> {
    let mut name = [0u8; 128];
    let mut len = name.len() as libc::socklen_t;
    let at = name.as_mut_ptr().cast();
    let ask = if peer { libc::getpeername } else { libc::getsockname };
    // SAFETY: the kernel writes at most `len` bytes of the name, and the length.
    let result = unsafe { ask(fd.as_raw_fd(), at, &raw mut len) };
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
    fn of(fd: &OwnedFd, at: (Pid, u32)) -> Option<Self> {
        let asked = |option| options::get(fd, option);
        let (family, kind) = (asked(options::DOMAIN)?, asked(options::TYPE)?);
        let protocol = asked(options::PROTOCOL)?;
        let known = matches!(family, libc::AF_INET | libc::AF_INET6)
            && matches!(
                (kind, protocol),
                (libc::SOCK_STREAM, libc::IPPROTO_TCP | libc::IPPROTO_MPTCP)
                    | (libc::SOCK_DGRAM, libc::IPPROTO_UDP)
            );
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
        let plain = one.protocol == libc::IPPROTO_TCP
            || one.state == state::LISTENS
            || one.state == state::CLOSE && !one.dead;
        (known && plain).then_some(one)
    }

    fn is_tcp(&self) -> bool {
        self.kind == libc::SOCK_STREAM
    }

    fn local(&self) -> Option<Place> {
        place(&self.local)
    }

    fn remote(&self) -> Option<Place> {
        place(&self.remote)
    }

    /// Whether what is sent there comes to this socket.
    fn receives(&self, at: Place) -> bool {
        self.local().is_some_and(|(ip, port)| port == at.1 && (ip == at.0 || ip.is_unspecified()))
    }

    /// Whether it is the other end of a connection.
    fn is_peer(&self, of: &Self) -> bool {
        let ends = (self.local(), self.remote());
        self.is_tcp()
            && of.is_tcp()
            && ends.1.is_some()
            && (ends.1, ends.0) == (of.local(), of.remote())
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

/// Has a connection reset when it is closed: nothing is left that keeps its ports (TIME_WAIT).
pub(crate) fn end_at_once((pid, fd): (Pid, u32)) {
    let at_once: [[u8; 4]; 2] = [1i32.to_ne_bytes(), [0; 4]];
    if let Ok(ours) = raw::take_descriptor(pid, fd.cast_signed()) {
        let _ = options::set(&ours, options::LINGER, at_once.as_flattened());
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
        state::CLOSE => Tie::None,
        _ if !own.is_tcp() => {
            let remote = own.remote()?;
            let receives = |other: &Inet| !other.is_tcp() && other.receives(remote);
            let found = inside.any(|(_, other)| receives(other)) || receives(own);
            found.then_some(Tie::None)?
        }
        state::CONNECTING => {
            let mut known = look.tables.tcp().iter();
            let line = known.find(|line| line.inode == fd.inode)?;
            (line.remote.0.is_loopback() || line.remote.0 == line.local.0).then_some(Tie::None)?
        }
        _ => match inside.find(|(_, other)| own.is_peer(other)) {
            Some((inode, _)) => Tie::Peer(*inode),
            None => alone(own, look)?,
        },
    };
    Some((own, tie))
}

/// The tie of a connection whose other end no process of the checkpoint has.
fn alone(own: &Inet, look: &Look<'_>) -> Option<Tie> {
    if !own.is_local() {
        return None;
    }
    let Some(other) = other_end(own, look) else {
        return (own.state == state::CLOSE_WAIT).then_some(Tie::Abandoned);
    };
    if other.inode != 0 {
        return None;
    }
    if !matches!(other.state, state::ESTABLISHED | state::CLOSE_WAIT) {
        return Some(Tie::Abandoned);
    }
    let all = look.tables.inet();
    let mut listeners =
        all.iter().filter(|(_, it)| it.state == state::LISTENS && it.receives(other.local));
    let (listener, _) = listeners.find(|(inode, _)| is_inside(**inode, look))?;
    Some(Tie::Waits(*listener, 0))
}

/// What the kernel tells of the other end of a connection that no process of the checkpoint has.
fn other_end<'a>(own: &Inet, look: &'a Look<'_>) -> Option<&'a Tcp> {
    let ends = (own.local()?, own.remote()?);
    look.tables.tcp().iter().find(|other| (other.remote, other.local) == ends)
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
    let bound = own.local().is_some_and(|(_, port)| port != 0);
    match (tie, own.state) {
        (_, state::LISTENS) => {
            (socket.flags, socket.backlog) =
                (socket_flag::LISTENS | socket_flag::BOUND, own.queue[1]);
        }
        (Tie::None, _) => socket.flags = if bound { socket_flag::BOUND } else { 0 },
        (Tie::Peer(peer), _) => socket.peer = peer,
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
    let waiting = match own.is_tcp() {
        true => of_stream(own, &ours, tie, look, saving)?,
        false => of_datagrams(own, &ours, look, saving)?,
    };
    if own.is_tcp() && !matches!(own.state, state::LISTENS | state::CLOSE) {
        // Of a connection that has not come to an end, only its own call ends what it receives.
        let ended = matches!(own.state, state::CLOSE_WAIT | LAST_ACK | CLOSING);
        socket.shutdown = u32::from(!ended && polled(libc::POLLRDHUP));
        socket.shutdown |=
            2 * u32::from(matches!(own.state, FIN_WAIT1 | FIN_WAIT2 | LAST_ACK | CLOSING));
    }
    if own.dead {
        socket.shutdown = 3;
    }
    if !own.is_tcp() {
        socket.shutdown = own.shut.into();
    }
    let options = super::save_options(&ours, saving);
    let mut pieces =
        vec![socket.as_bytes().to_vec(), own.local.clone(), options, own.remote.clone()];
    for message in waiting {
        pieces.extend((!own.is_tcp()).then_some(message.from));
        pieces.push(message.bytes);
    }
    saving.record.content = fd.number;
    saving.content = Some(Content { index: fd.number, bytes: pipe::framed(&pieces) });
    Ok(())
}

/// States of a connection that has sent its end (include/net/tcp_states.h).
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const LAST_ACK: u8 = 9;
const CLOSING: u8 = 11;

/// What can be read from a TCP socket, when all has come.
fn of_stream(
    own: &Inet,
    ours: &OwnedFd,
    tie: Tie,
    look: &Look<'_>,
    saving: &mut Saving,
) -> Result<Vec<queue::Message>> {
    let called = || format!("{} from {}", called(&own.local), called(&own.remote));
    match own.state {
        state::LISTENS => {
            name_waiting(own, look, saving);
            return Ok(Vec::new());
        }
        state::CONNECTING => {
            saving.passing.push(format!(
                "a connection is just being made (descriptor {}), which nobody has accepted yet",
                saving.record.fd
            ));
            return Ok(Vec::new());
        }
        _ => {}
    }
    let untouched = look.tables.untouched;
    let all_come = match tie {
        Tie::Peer(_) | Tie::Abandoned if untouched => true,
        Tie::Peer(peer) => {
            let sender = look.tables.inet().get(&peer).map(|other| other.at);
            let sender =
                sender.and_then(|(pid, fd)| raw::take_descriptor(pid, fd.cast_signed()).ok());
            let under_way = || sender.as_ref().map_or(0, drain::unsent);
            drain::drain(ours, sender.as_ref(), under_way)
        }
        Tie::Abandoned => {
            let state = || Inet::of(ours, own.at).map_or(state::CLOSE, |now| now.state);
            let open = || matches!(state(), state::ESTABLISHED | FIN_WAIT1 | FIN_WAIT2);
            drain::drain(ours, None, || if open() { AT_MOST } else { 0 })
        }
        Tie::Waits(..) => {
            let other = other_end(own, look);
            let end = u64::from(other.is_some_and(|other| other.state == state::CLOSE_WAIT));
            other.is_none_or(|other| other.readable <= end) && drain::unsent(ours) == 0
        }
        Tie::None => true,
    };
    if !all_come {
        saving.passing.push(match tie {
            Tie::Waits(..) => format!(
                "{} has been sent data before it accepted the connection from {}: they can be saved when it has",
                self::called(&own.remote), self::called(&own.local)
            ),
            _ => format!("{} has no room for all that was sent to it: it has to read first", called()),
        });
    }
    let waiting = match untouched {
        true => queue::glance(ours),
        false => queue::stream(ours, drain::readable(ours))?,
    };
    let urgent = queue::answers(ours, libc::POLLPRI);
    if waiting.unseen || urgent {
        saving
            .obstacles
            .push(format!("{} has been sent urgent data, which it has to read first", called()));
    }
    Ok(waiting.messages)
}

/// The most that a sender who is gone may have left, in bytes (tcp_wmem).
const AT_MOST: usize = 4 << 20;

/// Whether a client of this machine has closed its end before it was accepted: what it has sent is in nobody's hands.
fn has_gone_client(own: &Inet, look: &Look<'_>) -> bool {
    let (port, all) = (own.local().map(|local| local.1), look.tables.tcp());
    let is_held = |it: &Tcp| {
        let ends = (it.remote, it.local);
        all.iter().any(|other| other.inode != 0 && (other.local, other.remote) == ends)
    };
    all.iter().any(|it| {
        let here = it.remote.0.is_loopback() || it.remote.0 == it.local.0;
        let waits = it.inode == 0 && it.state == state::CLOSE_WAIT && Some(it.local.1) == port;
        waits && here && !is_held(it)
    })
}

/// Connections that somebody else waits for.
fn name_waiting(own: &Inet, look: &Look<'_>, saving: &mut Saving) {
    if own.queue[0] == 0 {
        return;
    }
    if has_gone_client(own, look) {
        saving.passing.push(gone_client(&called(&own.local)));
    }
    let waits = |fd: &&Fd| matches!(judge(fd, look), Some((_, Tie::Waits(listener, _))) if listener == saving.record.inode);
    let mut inodes: Vec<u64> =
        look.tables.everywhere().map(|(_, fd)| fd).filter(waits).map(|fd| fd.inode).collect();
    inodes.sort_unstable();
    inodes.dedup();
    let outside = (own.queue[0] as usize).saturating_sub(inodes.len());
    if outside > 0 {
        let called = called(&own.local);
        saving.say(format!("{outside} connections of others that wait to be accepted at {called}"));
    }
}

/// What waits at a UDP socket.
fn of_datagrams(
    own: &Inet,
    ours: &OwnedFd,
    look: &Look<'_>,
    saving: &mut Saving,
) -> Result<Vec<queue::Message>> {
    // A look would take the error away.
    if queue::answers(ours, libc::POLLERR) {
        saving.say(format!(
            "an error that {} has not been told, and what waits there",
            called(&own.local)
        ));
        return Ok(Vec::new());
    }
    if look.tables.untouched {
        return Ok(Vec::new());
    }
    let queue::Waiting { messages, doubtful, .. } = queue::messages(ours, None)?;
    if doubtful {
        saving.say(queue::doubt(&called(&own.local)));
    }
    let known = |message: &&queue::Message| {
        let from = place(&message.from);
        from.is_some_and(|from| {
            look.tables.inet().values().any(|it| !it.is_tcp() && it.receives(from))
        })
    };
    let strange = messages.iter().filter(|message| !known(message)).count();
    if strange > 0 {
        saving.say(format!("{strange} messages of others that wait at {}", called(&own.local)));
    }
    Ok(messages.iter().filter(known).cloned().collect())
}
