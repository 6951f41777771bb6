// SPDX-License-Identifier: LGPL-2.1-only
//! Making the sockets of an image again, all of them together: connections need both ends, and a listener where one
//! end has its name from there.

use super::door::Door;
use super::item::Item;
use super::queue::Message;
use super::{connect, options, ports};
use crate::error::{Because, Error, Result};
use crate::order;
use crate::proc::fds::UNDER_WAY;
use crate::proc::unix;
use crate::resource::descriptor::open::behind;
use crate::resource::descriptor::{
    Opening, Place, Restored, is_first, kind, numbers, pipe::unframed,
};
use ckpt_abi::image::{Descriptor, DescriptorKind, socket_flag};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{
    Backlog, ControlMessage, MsgFlags, Shutdown, SockType, UnixAddr, listen, send, sendmsg,
    shutdown,
};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// The sockets of a restart by the inode numbers that they had.
pub(crate) struct Made {
    make: Option<Make>,
}

impl Made {
    /// Makes all of them; what waits in unix sockets comes last.
    ///
    /// # Errors
    /// A name that is somebody else's here, and what the kernel refuses.
    pub(super) fn of_all(opening: &mut Opening<'_>) -> Result<Self> {
        let (mut items, mut inet) = (BTreeMap::new(), BTreeMap::new());
        for (number, records) in (0..).zip(opening.all) {
            let ours = |r: &&Descriptor| kind(r) == DescriptorKind::Socket && is_first(r, number);
            for record in records.iter().filter(ours) {
                let content = opening.sources.content(number, record.content)?;
                let damaged = || Error::new("a damaged socket");
                let pieces = unframed(&content).ok_or_else(damaged)?;
                match connect::Item::read(&pieces) {
                    Some(item) => drop(inet.insert(record.inode, item)),
                    None => {
                        let item = Item::read(number, record, pieces, opening.sources);
                        items.insert(record.inode, item.ok_or_else(damaged)?);
                    }
                }
            }
        }
        await_collection(&items);
        ports::map(&mut inet, |port| opening.sources.port(port));
        let mut make = Make { items, ends: HashMap::new(), ghosts: HashMap::new() };
        make.all_free(&inet)?;
        opening.warnings.extend(make.connected()?);
        make.unconnected()?;
        make.paired()?;
        make.set_options(&mut opening.warnings);
        for (inode, end) in connect::all(&inet, &mut opening.warnings)? {
            make.ends.insert(inode, end);
        }
        for item in make.items.values() {
            if let Some((_, None)) = item.elsewhere.get() {
                let called = item.called();
                opening
                    .warnings
                    .push(format!("{called}, whose file was removed, has another name"));
            }
        }
        // They are in the queues of listeners, not in anybody's hand, but others may send them.
        make.wait()?;
        Ok(Self { make: Some(make) })
    }

    /// Has all that waits in unix sockets wait there again, when all is open that may be under way in them.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(in super::super) fn finish(
        mut self,
        all: &[Vec<Restored>],
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let Some(make) = &mut self.make else { return Ok(()) };
        make.fill(all, warnings)?;
        make.connect_one_way(warnings)?;
        make.shut()?;
        for (inode, item) in &make.items {
            if let Some(end) = make.ends.get(inode) {
                restore_filter(end, Some(&item.options), warnings);
            }
        }
        Ok(())
    }

    /// What there is when they could not be made.
    pub(super) fn none() -> Self {
        Self { make: None }
    }

    /// The socket of a record; None if there are none, which was told.
    ///
    /// # Errors
    /// A damaged image.
    pub(super) fn descriptor(&self, record: &Descriptor) -> Result<Option<OwnedFd>> {
        let Some(make) = &self.make else { return Ok(None) };
        let end = make.ends.get(&record.inode).ok_or_else(|| Error::new("a damaged socket"))?;
        end.try_clone().map(Some).because(|| "cannot duplicate a socket")
    }
}

/// Sockets that are being made.
struct Make {
    items: BTreeMap<u64, Item>,
    ends: HashMap<u64, OwnedFd>,
    /// The other ends of those that nobody had any more.
    ghosts: HashMap<u64, OwnedFd>,
}

impl Make {
    /// The other end of a connection that both ends know.
    fn partner(&self, inode: u64) -> Option<u64> {
        let item = self.items.get(&inode)?;
        let peer = self.items.get(&item.socket.peer)?;
        // One may send to itself.
        let both =
            !item.is(socket_flag::WAITS) && peer.socket.peer == inode && item.socket.peer != inode;
        both.then_some(item.socket.peer)
    }

    /// Looks for names and ports that others have, all of them, before anything is made.
    fn all_free(&self, inet: &BTreeMap<u64, connect::Item>) -> Result<()> {
        let others = unix::all();
        let alone = self.items.iter().filter(|(inode, item)| self.is_bound_alone(**inode, item));
        let mut problems: Vec<String> =
            alone.filter_map(|(_, item)| item.obstacle(others.as_ref())).collect();
        let taken = ports::problems(inet)?;
        let ports = !taken.is_empty();
        problems.extend(taken);
        if problems.is_empty() {
            return Ok(());
        }
        let error = Error::new(problems.join("; ")).with_errno(Errno::EADDRINUSE as i32);
        Err(match ports {
            true => error.hint(
                "end what has these, or choose other ports (--map-port OLD=NEW); it may be the program that was saved",
            ),
            false => error.hint("end what has these; it may be the program that was saved"),
        })
    }

    fn is_bound_alone(&self, inode: u64, item: &Item) -> bool {
        let tied = item.is(socket_flag::ABANDONED | socket_flag::WAITS);
        !tied && self.partner(inode).is_none()
    }

    /// Those without another end.
    fn unconnected(&mut self) -> Result<()> {
        let others = unix::all();
        let alone: Vec<_> =
            self.items.iter().filter(|(inode, item)| self.is_bound_alone(**inode, item)).collect();
        for (_, item) in &alone {
            item.file.as_ref().map_or(Ok(()), |file| item.clear(file, others.as_ref()))?;
        }
        // Names that were removed are had before others have them.
        let (removed, there): (Vec<_>, Vec<_>) =
            alone.into_iter().partition(|(_, item)| item.is_removed());
        for (inode, item) in removed.into_iter().chain(there) {
            let end = item.make()?;
            if item.is(socket_flag::BOUND) {
                item.bind(&end, others.as_ref())?;
            }
            if item.is(socket_flag::LISTENS) {
                let backlog = Backlog::new(item.socket.backlog.cast_signed());
                let listens = listen(&end, backlog.unwrap_or(Backlog::MAXCONN));
                listens.because(|| format!("cannot make {}", item.called()))?;
            }
            self.ends.insert(*inode, end);
        }
        Ok(())
    }

    /// Those of streams and packets, before anybody finds a listener of the program's.
    fn connected(&mut self) -> Result<Vec<String>> {
        let (others, mut unnamed) = (unix::all(), Vec::new());
        let mut doors = HashMap::new();
        for (inode, item) in &self.items {
            if item.has_datagrams() || !self.leads(*inode, item) {
                continue;
            }
            let other = self.partner(*inode).and_then(|partner| self.items.get(&partner));
            let named = [Some(item), other].map(|it| it.filter(|it| !it.name.is_empty()));
            let (server, client, turned) = match named {
                [Some(item), None] if !item.is(socket_flag::OUTSIDE) => (Some(item), other, false),
                [Some(item), other] if self.listener(item).is_some() => (Some(item), other, false),
                [client, Some(other)] => (Some(other), client, true),
                _ => (None, None, false),
            };
            let pair = match server {
                None => item.pair()?,
                Some(server) => {
                    let door =
                        doors.entry((server.socket.kind, &server.name[..], server.file.as_ref()));
                    let door = match door {
                        Entry::Occupied(door) => door.into_mut(),
                        Entry::Vacant(vacant) => {
                            // The file of a listener that is to be made is in its way.
                            if let Some((item, file)) = self
                                .listener(server)
                                .and_then(|item| Some((item, item.file.as_ref()?)))
                            {
                                item.clear(file, others.as_ref())?;
                            }
                            vacant.insert(Door::of(server)?)
                        }
                    };
                    match door {
                        Some(door) => door.connection(server, client, others.as_ref())?,
                        None => {
                            let called = server.called();
                            unnamed.push(format!("a connection is without the name of {called}"));
                            server.pair()?
                        }
                    }
                }
            };
            let (client, accepted) = pair;
            let (one, two) = if turned { (client, accepted) } else { (accepted, client) };
            self.ends.insert(*inode, one);
            match self.partner(*inode) {
                Some(partner) => self.ends.insert(partner, two),
                None => self.ghosts.insert(*inode, two),
            };
        }
        Ok(unnamed)
    }

    /// Pairs of datagram sockets, also those whose other end nobody has.
    fn paired(&mut self) -> Result<()> {
        let others = unix::all();
        for (inode, item) in &self.items {
            if !item.has_datagrams() || !self.leads(*inode, item) {
                continue;
            }
            let partner = self.partner(*inode);
            let other = partner.and_then(|partner| self.items.get(&partner));
            let (one, two) = item.pair()?;
            for (end, item) in [(&one, Some(item)), (&two, other)] {
                let bound = item.filter(|item| item.is(socket_flag::BOUND));
                bound.map(|item| item.bind(end, others.as_ref())).transpose()?;
            }
            self.ends.insert(*inode, one);
            match partner {
                Some(partner) => self.ends.insert(partner, two),
                None => self.ghosts.insert(*inode, two),
            };
        }
        Ok(())
    }

    /// Whether a connection is made when this end of it comes: the first of two, or the only one.
    fn leads(&self, inode: u64, item: &Item) -> bool {
        let partner = self.partner(inode);
        partner.map_or(item.is(socket_flag::ABANDONED), |partner| partner > inode)
    }

    /// The listener that an accepted socket has its name from.
    fn listener(&self, accepted: &Item) -> Option<&Item> {
        let named = |item: &&Item| item.is(socket_flag::LISTENS) && item.name == accepted.name;
        let same = |item: &&Item| item.socket.kind == accepted.socket.kind;
        self.items.values().find(|item| named(item) && same(item))
    }

    fn set_options(&self, warnings: &mut Vec<String>) {
        for (inode, end) in &self.ends {
            let options = self.items.get(inode).map(|item| &item.options[..]).unwrap_or_default();
            set_options(end, options, warnings);
        }
    }

    /// Sends what waits to be read, through the other end or one of the sender's name.
    fn fill(&self, all: &[Vec<Restored>], warnings: &mut Vec<String>) -> Result<()> {
        for (inode, item) in &self.items {
            let other = self.partner(*inode).and_then(|partner| self.ends.get(&partner));
            let other = other.or_else(|| self.ghosts.get(inode));
            for message in &item.messages {
                let strange = item.is(socket_flag::OUTSIDE | socket_flag::CONNECTS);
                let rights = match rights(item, message, all) {
                    Err(error) if strange => {
                        warnings.push(format!("in {}, {error}", item.called()));
                        Vec::new()
                    }
                    found => found?,
                };
                let sent = match other {
                    Some(other) => send_all(other, item, &message.bytes, &rights),
                    None => self.send_to(item, message, &rights),
                };
                sent.because(|| format!("cannot bring back what waits in {}", item.called()))?;
            }
        }
        Ok(())
    }

    fn send_to(&self, item: &Item, message: &Message, rights: &[i32]) -> Result<()> {
        let from = |sender: &Item| sender.has_datagrams() && sender.name == message.from;
        let mut named = self.items.iter().filter(|(_, it)| !message.from.is_empty() && from(it));
        let sender = named.find_map(|(inode, _)| self.ends.get(inode));
        let own = item.make()?;
        let sender = sender.unwrap_or(&own).as_raw_fd();
        let sent = item.by_place(|to| send_with(sender, &message.bytes, rights, Some(to)));
        sent.map(drop).because(|| "it cannot be sent")
    }

    /// Sockets that send to one that does not send to them.
    fn connect_one_way(&self, warnings: &mut Vec<String>) -> Result<()> {
        for (inode, item) in &self.items {
            if let (Some(to), Some(end)) = (item.to(), self.ends.get(inode)) {
                let connected = to.and_then(|to| nix::sys::socket::connect(end.as_raw_fd(), &to));
                warnings.extend(connected.err().map(|errno| {
                    let name = String::from_utf8_lossy(&item.sends_to).replace('\0', "@");
                    format!(
                        "a socket that sends to {name} is not connected to it: {}",
                        errno.desc()
                    )
                }));
            }
            let (Some(end), Some(to)) = (self.ends.get(inode), self.items.get(&item.socket.peer))
            else {
                continue;
            };
            if item.has_datagrams() && self.partner(*inode).is_none() {
                let connected =
                    to.by_place(|address| nix::sys::socket::connect(end.as_raw_fd(), address));
                connected.because(|| format!("cannot connect to {}", to.called()))?;
            }
        }
        Ok(())
    }

    /// Sockets in the queues of listeners, in their order.
    fn wait(&mut self) -> Result<()> {
        let waits = |(_, item): &(&u64, &Item)| item.is(socket_flag::WAITS);
        let mut waiting: Vec<_> = self.items.iter().filter(waits).collect();
        order::by_key(&mut waiting, |(_, item)| (item.socket.place.into(), 0));
        for (inode, item) in waiting {
            let listener = self.items.get(&item.socket.peer);
            let listener = listener.ok_or_else(|| Error::new("a damaged socket"))?;
            let why = || format!("cannot connect to {}", listener.called());
            let end = item.make()?;
            if !item.name.is_empty() {
                item.bind(&end, unix::all().as_ref())?;
            }
            let _ = options::restore(&end, &item.options, &[]);
            nix::fcntl::fcntl(&end, nix::fcntl::F_SETFL(OFlag::O_NONBLOCK)).because(why)?;
            listener
                .by_place(|address| nix::sys::socket::connect(end.as_raw_fd(), address))
                .because(why)?;
            self.ends.insert(*inode, end);
        }
        Ok(())
    }

    /// Ends what had ended.
    fn shut(&self) -> Result<()> {
        for (inode, item) in &self.items {
            let Some(end) = self.ends.get(inode) else { continue };
            if item.is(socket_flag::RESET) {
                let _ = send(end.as_raw_fd(), b"!", FLAGS);
            }
            let how = match item.socket.shutdown {
                1 => Shutdown::Read,
                2 => Shutdown::Write,
                3 => Shutdown::Both,
                _ => continue,
            };
            match shutdown(end.as_raw_fd(), how) {
                // A socket that was never connected.
                Ok(()) | Err(Errno::ENOTCONN) => {}
                Err(e) => return Err(e).because(|| "cannot shut a socket down"),
            }
        }
        Ok(())
    }
}

/// Waits until the sockets of a program are gone that were under way in each other: the kernel looks for such when a
/// socket is closed, and is not done by then (net/unix/garbage.c).
fn await_collection(items: &BTreeMap<u64, Item>) {
    let are_under_way = items.values().flat_map(|it| &it.messages).any(|m| !m.rights.is_empty());
    let named = |name: &[u8]| !name.is_empty() && items.values().any(|item| item.name == name);
    for _ in 0..if are_under_way { 20 } else { 0 } {
        drop(UnixDatagram::pair());
        let all = unix::all().unwrap_or_default();
        if !all.values().any(|one| named(&one.name)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sets all options of a socket.
pub(super) fn set_options(end: &OwnedFd, saved: &[u8], warnings: &mut Vec<String>) {
    if let Err((level, option)) = options::restore(end, saved, &[]) {
        warnings.push(format!(
            "a socket is without its option {option} of level {level} (setsockopt(2))"
        ));
    }
}

/// Gives a socket its filter.
pub(super) fn restore_filter(end: &OwnedFd, saved: Option<&[u8]>, warnings: &mut Vec<String>) {
    if let Err(errno) = options::restore_filter(end, saved.unwrap_or_default()) {
        warnings
            .push(format!("a socket is without its filter (SO_ATTACH_FILTER): {}", errno.desc()));
    }
}

const FLAGS: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_NOSIGNAL);

/// The descriptors here that come with a message.
fn rights(item: &Item, message: &Message, all: &[Vec<Restored>]) -> Result<Vec<i32>> {
    let number = |fd: &u32| {
        let place = Place { process: item.process, fd: *fd };
        let (record, file) = behind(all, place)?;
        if record.fd & UNDER_WAY != 0 {
            numbers::mark(file, record);
        }
        Some(file.as_raw_fd())
    };
    let found: Option<Vec<i32>> = message.rights.iter().map(number).collect();
    found.ok_or_else(|| Error::new("a descriptor that was under way is missing"))
}

/// Sends a message, with descriptors.
fn send_with(
    through: i32,
    bytes: &[u8],
    rights: &[i32],
    to: Option<&UnixAddr>,
) -> nix::Result<usize> {
    let with = [ControlMessage::ScmRights(rights)];
    let with = if rights.is_empty() { &with[..0] } else { &with[..] };
    sendmsg(through, &[std::io::IoSlice::new(bytes)], with, FLAGS, to)
}

/// Sends a message, or the bytes of a stream; descriptors go with the first of them.
fn send_all(through: &impl AsFd, item: &Item, bytes: &[u8], rights: &[i32]) -> Result<()> {
    let number = through.as_fd().as_raw_fd();
    let mut done = 0;
    loop {
        let rights = if done == 0 { rights } else { &[] };
        done += send_with(number, &bytes[done..], rights, None).because(|| "it does not fit")?;
        if done >= bytes.len() || item.kind() != SockType::Stream {
            return Ok(());
        }
    }
}
