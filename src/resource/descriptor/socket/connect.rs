// SPDX-License-Identifier: LGPL-2.1-only
//! Making the TCP and UDP sockets of an image again, all of them together.
//!
//! Connections come first, each through a listener of its own at the very address of one end, so that nobody else meets
//! it; then what listens. Until then all have SO_REUSEADDR, without which their addresses would exclude each other, and
//! connections keep it: if this restart fails, nothing that is left of them (TIME_WAIT) hinders the next.
//!
//! # Safety
//! The system call reads bytes and a name of our own, whose lengths it is given.
#![allow(unsafe_code)]

use super::drain::{self, Room};
use super::inet::{called, named, place};
use super::make::{restore_filter, set_options};
use super::name::{
    accept, addressed, bind, bind_anyway, connect, listen, new, own_name, translated,
};
use super::options::{self, BEFORE_BIND, FREEBIND, REUSEADDR, REUSEPORT, SNDBUF};
use super::queue::Message;
use super::{keep, plain, ports};
use crate::error::{Because, Result};
use crate::order;
use ckpt_abi::image::{KeptTcp, Socket, socket_flag};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};
use zerocopy::FromBytes;

/// A socket of the image.
pub(super) struct Item {
    pub(super) socket: Socket,
    pub(super) local: Vec<u8>,
    pub(super) options: Vec<u8>,
    pub(super) remote: Vec<u8>,
    pub(super) messages: Vec<Message>,
    /// Of one that goes on, what is known of it, and what it has sent.
    pub(super) kept: Option<(KeptTcp, Vec<u8>)>,
}

/// Sockets by the inode numbers that they had.
type Ends = HashMap<u64, OwnedFd>;

const FLAGS: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_NOSIGNAL);

/// How long a connection may take what waited in it.
const PATIENCE: Duration = Duration::from_secs(2);

impl Item {
    /// Reads the pieces of a record; None of another kind of socket.
    pub(super) fn read(pieces: &[&[u8]]) -> Option<Self> {
        let [record, local, options, remote, rest @ ..] = pieces else { return None };
        let (socket, _) = Socket::read_from_prefix(record).ok()?;
        let mut rest = rest;
        let kept = keep::recorded(&socket, &mut rest);
        let message = |from: &[u8], bytes: &[u8]| Message::of(from.to_vec(), bytes.to_vec());
        let messages = match socket.kind as i32 {
            libc::SOCK_STREAM => rest.iter().map(|bytes| message(&[], bytes)).collect(),
            _ => rest.chunks_exact(2).map(|pair| message(pair[0], pair[1])).collect(),
        };
        let [local, options, remote] = [local, options, remote].map(|piece| piece.to_vec());
        (socket.family != 0).then_some(Self { socket, local, options, remote, messages, kept })
    }

    pub(super) fn is(&self, flag: u32) -> bool {
        self.socket.flags & flag != 0
    }

    pub(super) fn is_stream(&self) -> bool {
        self.socket.kind as i32 == libc::SOCK_STREAM
    }

    /// Whether it knows neither connections nor ports (raw(7), packet(7), netlink(7), ping sockets of icmp(7)).
    pub(super) fn is_plain(&self) -> bool {
        let protocol = self.socket.protocol as i32;
        let udp = matches!(protocol, libc::IPPROTO_UDP | libc::IPPROTO_UDPLITE);
        !(self.is_stream() || udp && self.socket.kind as i32 == libc::SOCK_DGRAM)
    }

    /// A new socket of this kind.
    pub(super) fn make(&self) -> Result<OwnedFd> {
        let (kind, protocol) = (self.socket.kind as i32, self.socket.protocol as i32);
        new(self.socket.family, kind, protocol).because(|| "cannot make a socket")
    }

    /// Shuts an end as it was.
    fn shut(&self, end: &OwnedFd) {
        let how = match self.socket.shutdown {
            1 => Shutdown::Read,
            2 => Shutdown::Write,
            3 => Shutdown::Both,
            _ => return,
        };
        // What was reset is at its end already.
        let _ = shutdown(end.as_raw_fd(), how);
    }

    /// The connection for people.
    fn line(&self) -> String {
        format!("the connection from {} to {}", called(&self.remote), called(&self.local))
    }
}

/// Makes all of them, with what waits in them; sentences are told by `warnings`.
///
/// # Errors
/// A port or an address that cannot be had, and what the kernel refuses.
pub(super) fn all(items: &BTreeMap<u64, Item>, warnings: &mut Vec<String>) -> Result<Ends> {
    let mut make =
        Make { items, ends: keep::all(items)?, ghosts: HashMap::new(), listeners: HashMap::new() };
    make.connections(warnings)?;
    make.listeners.clear();
    make.bound(warnings)?;
    make.fill()?;
    make.connect_datagrams(warnings)?;
    make.set_options(warnings);
    make.wait(warnings)?;
    make.connecting(warnings)?;
    make.shut(warnings);
    for (inode, item) in items.iter().filter(|(_, item)| item.is_plain()) {
        make.ends.insert(*inode, plain::make(item, warnings)?);
    }
    for (inode, end) in &make.ends {
        let options = items.get(inode).map(|item| &item.options[..]);
        restore_filter(end, options, warnings);
    }
    Ok(make.ends)
}

/// Sockets that are being made.
struct Make<'a> {
    items: &'a BTreeMap<u64, Item>,
    ends: Ends,
    /// The other ends of those that nobody had any more.
    ghosts: Ends,
    /// Those through which connections are made, by their names.
    listeners: HashMap<Vec<u8>, OwnedFd>,
}

impl<'a> Make<'a> {
    /// The other end of a connection both of whose ends are here.
    fn partner(&self, item: &Item) -> Option<(u64, &'a Item)> {
        let peer = item.socket.peer;
        let found = self.items.get(&peer).filter(|_| !item.is(socket_flag::WAITS));
        found.map(|found| (peer, found))
    }

    fn listens_at(&self, name: &[u8]) -> bool {
        let port = place(name).map(|(_, port)| port);
        let mut all = self.items.values();
        all.any(|item| item.is(socket_flag::LISTENS) && place(&item.local).map(|at| at.1) == port)
    }

    fn connections(&mut self, warnings: &mut Vec<String>) -> Result<()> {
        for (inode, item) in self.items {
            if self.ends.contains_key(inode) {
                continue;
            }
            if item.is(socket_flag::ABANDONED) {
                let (own, ghost) = self.connection(item, None, warnings)?;
                self.ends.insert(*inode, own);
                self.ghosts.insert(*inode, ghost);
            } else if let Some((peer, other)) = self.partner(item) {
                // The end that was accepted, where that can be seen, is accepted again.
                let turned = self.listens_at(&other.local) && !self.listens_at(&item.local);
                let (server, client) = if turned { (other, item) } else { (item, other) };
                let (one, two) = self.connection(server, Some(client), warnings)?;
                let (own, others) = if turned { (two, one) } else { (one, two) };
                self.ends.insert(*inode, own);
                self.ends.insert(peer, others);
            }
        }
        Ok(())
    }

    /// The end that is accepted, and the other: with their names if these can be had.
    fn connection(
        &mut self,
        server: &Item,
        client: Option<&Item>,
        warnings: &mut Vec<String>,
    ) -> Result<(OwnedFd, OwnedFd)> {
        let family = client.map_or(server.socket.family, |client| client.socket.family);
        let (name, to) = (&server.remote[..], translated(&server.local, family));
        let from = client.map_or(name, |client| &client.local);
        let named = !server.remote.is_empty();
        if named && let Ok(made) = self.meet(server, &server.local, family, Some(from), &to) {
            return Ok(made);
        }
        // Nobody sees whom a connection that is reset has been to.
        if named && !server.is(socket_flag::OUTSIDE | socket_flag::CONNECTS) {
            warnings.push(format!("{} has another port or address by now", server.line()));
        }
        if place(&server.local).is_some_and(|(_, port)| port != 0)
            && let Ok(made) = self.meet(server, &server.local, family, None, &to)
        {
            return Ok(made);
        }
        let four = place(&server.local).is_some_and(|(ip, _)| ip.is_ipv4());
        let own = own_name(server.socket.family, four);
        self.meet(server, &own, family, None, &[])
            .because(|| format!("cannot make {}", server.line()))
    }

    fn meet(
        &mut self,
        server: &Item,
        at: &[u8],
        family: u32,
        from: Option<&[u8]>,
        to: &[u8],
    ) -> nix::Result<(OwnedFd, OwnedFd)> {
        let known = self.listeners.remove(at);
        let listener = match known {
            Some(listener) => listener,
            None => {
                let listener = new(server.socket.family, libc::SOCK_STREAM, 0)?;
                bind_anyway(&listener, at)?;
                listen(&listener, 64)?;
                listener
            }
        };
        let client = new(family, libc::SOCK_STREAM, 0)?;
        let met = from.map_or(Ok(()), |from| bind_anyway(&client, from)).and_then(|()| {
            let listens = named(&listener, false);
            let to = if to.is_empty() { translated(&listens, family) } else { to.to_vec() };
            connect(&client, &to)
        });
        let accepted = met.and_then(|()| accept(&listener, &client));
        self.listeners.insert(at.to_vec(), listener);
        Ok((accepted?, client))
    }

    /// Those that are not connected.
    fn bound(&mut self, warnings: &mut Vec<String>) -> Result<()> {
        for (inode, item) in self.items {
            let otherwise = socket_flag::WAITS | socket_flag::CONNECTS;
            if self.ends.contains_key(inode) || item.is(otherwise) || item.is_plain() {
                continue;
            }
            let end = item.make()?;
            let _ = options::restore(&end, &item.options, &BEFORE_BIND);
            if ports::is_crowded(item, self.items) {
                let _ = options::set_int(&end, REUSEPORT, 1);
            }
            if item.is(socket_flag::FOREIGN) {
                let _ = options::set_int(&end, FREEBIND, 1);
            }
            if item.is(socket_flag::BOUND)
                && let Err(errno) = bind_anyway(&end, &item.local)
            {
                if !ports::sends_outside(item, self.items) {
                    return Err(ports::refused(errno, &called(&item.local)));
                }
                warnings.push(format!(
                    "the socket that sends to {} has another port or address by now",
                    called(&item.remote)
                ));
            }
            if item.is(socket_flag::LISTENS) {
                listen(&end, item.socket.backlog)
                    .map_err(|errno| ports::refused(errno, &called(&item.local)))?;
            }
            self.ends.insert(*inode, end);
        }
        Ok(())
    }

    /// Brings back what waits to be read.
    fn fill(&self) -> Result<()> {
        for (inode, item) in self.items {
            let Some(end) = self.ends.get(inode).filter(|_| !item.messages.is_empty()) else {
                continue;
            };
            let why = || format!("cannot bring back what waits in {}", item.line());
            if !item.is_stream() {
                self.send_to(item, end);
                continue;
            }
            let partner = self.partner(item).and_then(|(peer, _)| self.ends.get(&peer));
            let Some(sender) = partner.or_else(|| self.ghosts.get(inode)) else { continue };
            for message in &item.messages {
                send_all(sender, end, &message.bytes).because(why)?;
            }
        }
        Ok(())
    }

    /// Sends datagrams from where they came, if that can be had; a network may lose those of others.
    fn send_to(&self, item: &Item, end: &OwnedFd) {
        let wanted: usize = item.messages.iter().map(|message| message.bytes.len() + 1024).sum();
        let mut room = Room::of(end);
        room.grow(wanted * 2);
        let to = named(end, false);
        for Message { from, bytes, .. } in &item.messages {
            let sends = |other: &Item| !other.is_stream() && place(&other.local) == place(from);
            let sender = self.items.iter().find(|(_, other)| sends(other));
            let known = sender.and_then(|(inode, _)| self.ends.get(inode));
            let own = known.is_none().then(|| {
                let own = item.make()?;
                bind(&own, from).map(|()| own).because(|| "no sender")
            });
            let own = own.and_then(Result::ok);
            let Some(sender) = known.or(own.as_ref()) else { continue };
            let to = addressed(&to, place(from), sender);
            let (at, len) = (bytes.as_ptr().cast(), bytes.len());
            let (name, size) = (to.as_ptr().cast(), to.len() as u32);
            // SAFETY: the kernel reads the bytes and the name.
            unsafe { libc::sendto(sender.as_raw_fd(), at, len, FLAGS.bits(), name, size) };
        }
        room.take_back();
    }

    fn set_options(&self, warnings: &mut Vec<String>) {
        for (inode, end) in &self.ends {
            let Some(item) = self.items.get(inode) else { continue };
            if item.kept.is_some() {
                set_options(end, &options::early(&item.options), warnings);
                continue;
            }
            set_options(end, &item.options, warnings);
            if item.is_stream() && !item.remote.is_empty() {
                let _ = options::set_int(end, REUSEADDR, 1);
            }
        }
    }

    fn connect_datagrams(&self, warnings: &mut Vec<String>) -> Result<()> {
        for (inode, item) in self.items {
            let Some(end) = self.ends.get(inode) else { continue };
            if item.is_stream() || item.remote.is_empty() {
                continue;
            }
            let why = || format!("cannot connect to {}", called(&item.remote));
            let connected = connect(end, &item.remote).because(why);
            match ports::sends_outside(item, self.items) {
                true => warnings.extend(connected.err().map(|error| error.to_string())),
                false => connected?,
            }
        }
        Ok(())
    }

    /// Sockets in the queues of listeners, in their order.
    fn wait(&mut self, warnings: &mut Vec<String>) -> Result<()> {
        let mut waiting: Vec<_> =
            self.items.iter().filter(|(_, item)| item.is(socket_flag::WAITS)).collect();
        order::by_key(&mut waiting, |(_, item)| (item.socket.place.into(), 0));
        for (inode, item) in waiting {
            let why = || format!("cannot connect to {}", called(&item.remote));
            let end = item.make()?;
            if bind(&end, &item.local).is_err() {
                warnings.push(format!(
                    "the connection from {} has another port by now",
                    called(&item.local)
                ));
            }
            connect(&end, &item.remote).because(why)?;
            set_options(&end, &item.options, warnings);
            self.ends.insert(*inode, end);
        }
        Ok(())
    }

    /// Those that were just connecting begin anew; what the kernel refuses at once becomes a reset connection.
    fn connecting(&mut self, warnings: &mut Vec<String>) -> Result<()> {
        for (inode, item) in self.items.iter().filter(|(_, item)| item.is(socket_flag::CONNECTS)) {
            let end = item.make()?;
            let _ = options::restore(&end, &item.options, &BEFORE_BIND);
            let _ = bind(&end, &item.local);
            set_options(&end, &item.options, warnings);
            // The program's own flags come when it has its number.
            let waits_not = nix::fcntl::F_SETFL(OFlag::O_NONBLOCK);
            nix::fcntl::fcntl(&end, waits_not).because(|| "cannot set the flags of a socket")?;
            let made = connect(&end, &item.remote);
            set_options(&end, &item.options, warnings);
            let end = match made {
                Ok(()) | Err(Errno::EINPROGRESS) => end,
                Err(_) => {
                    let (own, ghost) = self.connection(item, None, warnings)?;
                    options::end_at_once(&ghost);
                    own
                }
            };
            self.ends.insert(*inode, end);
        }
        self.listeners.clear();
        Ok(())
    }

    /// Ends what had ended.
    fn shut(&mut self, warnings: &mut Vec<String>) {
        for (inode, item) in self.items {
            if item.is(socket_flag::OUTSIDE) {
                self.reset(*inode, item, warnings);
                continue;
            }
            if let Some(ghost) = self.ghosts.remove(inode).filter(|_| item.is(socket_flag::RESET)) {
                options::end_at_once(&ghost);
            }
            if let Some(end) = self.ends.get(inode) {
                item.shut(end);
            }
        }
    }

    /// Resets a connection whose other end was outside, when all has come that waits in it: that stays to be read
    /// (net/ipv4/tcp.c, tcp_recvmsg_locked).
    fn reset(&mut self, inode: u64, item: &Item, warnings: &mut Vec<String>) {
        let (Some(ghost), Some(end)) = (self.ghosts.remove(&inode), self.ends.get(&inode)) else {
            return;
        };
        // A machine may be slow, or give sockets less room than that of the save.
        const TIMES: usize = 5;
        let came = || drain::drain(end, Some(&ghost), || drain::unsent(&ghost));
        if !(0..TIMES).any(|_| came()) {
            let from = called(&item.remote);
            warnings.push(format!(
                "{} bytes that had come from {from} are lost: there is no room for them",
                drain::unsent(&ghost)
            ));
        }
        if item.is(socket_flag::ENDED) {
            let _ = shutdown(ghost.as_raw_fd(), Shutdown::Write);
        }
        item.shut(end);
        options::end_at_once(&ghost);
    }
}

/// Sends the bytes of a stream; what the reader has no room for stays with the sender, as it was, as far as that has
/// room.
fn send_all(sender: &OwnedFd, reader: &OwnedFd, bytes: &[u8]) -> Result<()> {
    let mut room = Room::of(reader);
    let (begun, mut done) = (Instant::now(), 0);
    while done < bytes.len() {
        match send(sender.as_raw_fd(), &bytes[done..], FLAGS) {
            Ok(sent) => done += sent,
            Err(Errno::EAGAIN) if begun.elapsed() < PATIENCE => {
                let more = begun.elapsed().as_millis() / 20;
                room.grow_for(bytes.len(), more as usize);
                drain::peek(reader);
                if begun.elapsed() > PATIENCE / 4 {
                    options::enlarge(sender, SNDBUF, (bytes.len() - done) as i32);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(e).because(|| "it does not fit"),
        }
    }
    room.take_back();
    Ok(())
}
