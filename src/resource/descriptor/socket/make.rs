// SPDX-License-Identifier: LGPL-2.1-only
//! Making the sockets of an image again, all of them together: connections need both ends, and a listener where one
//! end has its name from there.

use super::door::{Door, connect_through};
use super::item::Item;
use super::{connect, keep, options, ports};
use crate::error::{Because, Error, Result};
use crate::order;
use crate::proc::unix;
use crate::resource::descriptor::{
    Opening, Origin, Restored, is_first, kind, numbers, pipe::unframed,
};
use ckpt_abi::image::{Descriptor, DescriptorKind, socket_flag};
use nix::errno::Errno;
use nix::sys::socket::{Backlog, MsgFlags, listen};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// Does work as the process of an id, a user and a group, with the descriptors of this one.
pub(crate) type Deputy<'a> =
    &'a dyn Fn([u32; 3], &mut dyn FnMut() -> nix::Result<()>) -> nix::Result<()>;

/// Does work as somebody else, where there is a deputy and the process is known.
pub(super) fn act(
    deputy: Option<Deputy<'_>>,
    who: [u32; 3],
    mut work: impl FnMut() -> nix::Result<()>,
) -> nix::Result<()> {
    match deputy {
        Some(deputy) if who[0] != 0 => deputy(who, &mut work),
        _ => work(),
    }
}

/// The sockets of a restart by the inode numbers that they had.
pub(crate) struct Made {
    make: Option<Make>,
}

impl Made {
    /// Makes all of them; those of unix as far as they can be before others are open.
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
        let rehearsed = opening.sources.is_rehearsal();
        let wanted = opening.sources.keeps_tcp();
        let unwanted = keep::settle(&mut inet, wanted, rehearsed, &mut opening.warnings);
        await_collection(&items);
        ports::map(&mut inet, |port| opening.sources.port(port));
        let (ends, ghosts, doors) = (HashMap::new(), HashMap::new(), Vec::new());
        let mut make = Make { items, ends, ghosts, doors };
        make.all_free(&inet)?;
        unwanted.into_iter().for_each(keep::end);
        opening.warnings.extend(make.prepare()?);
        make.unconnected()?;
        for (inode, end) in connect::all(&inet, &mut opening.warnings)? {
            make.ends.insert(inode, end);
        }
        Ok(Self { make: Some(make) })
    }

    /// Connects those of unix, and has all that waits in them wait there again, when all is open that may be under way in
    /// them. Deputies do it whose ids others learn by that (SO_PEERCRED, SCM_CREDENTIALS). In between, when all sockets are
    /// what they will be, `watch` has what is under way watch them.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(crate) fn finish(
        mut self,
        all: &[Vec<Restored>],
        deputy: Option<Deputy<'_>>,
        watch: &dyn Fn() -> Result<()>,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let Some(make) = &mut self.make else { return Ok(()) };
        make.listen(deputy, true)?;
        make.connect(deputy)?;
        make.pair(deputy)?;
        make.set_options(warnings);
        for item in make.items.values() {
            if let Some((_, None)) = item.elsewhere.get() {
                let called = item.called();
                warnings.push(format!("{called}, whose file was removed, has another name"));
            }
        }
        make.wait(deputy)?;
        make.hand_over(all);
        watch()?;
        make.fill(all, deputy, warnings)?;
        make.connect_one_way(warnings)?;
        make.shut()?;
        make.listen(deputy, false)?;
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
pub(super) struct Make {
    pub(super) items: BTreeMap<u64, Item>,
    pub(super) ends: HashMap<u64, OwnedFd>,
    /// The other ends of those that nobody had any more.
    pub(super) ghosts: HashMap<u64, OwnedFd>,
    /// Where connections are made, by the inode number of one that is accepted there.
    doors: Vec<(u64, Door)>,
}

impl Make {
    /// The other end of a connection that both ends know.
    pub(super) fn partner(&self, inode: u64) -> Option<u64> {
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
        let others = !problems.is_empty();
        problems.extend(keep::problems(inet));
        if problems.is_empty() {
            return Ok(());
        }
        let error = Error::new(problems.join("; ")).with_errno(Errno::EADDRINUSE as i32);
        Err(match ports {
            true => error.hint(
                "end what has these, or choose other ports (--map-port OLD=NEW); it may be the program that was saved",
            ),
            false if others => {
                error.hint("end what has these; it may be the program that was saved")
            }
            false => error,
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
            self.ends.insert(*inode, end);
        }
        Ok(())
    }

    /// The accepted end of a connection that has a name, and whether that is the other one.
    fn meeting(&self, inode: u64, item: &Item) -> Option<(u64, bool)> {
        let other = self.partner(inode);
        let other = other.filter(|it| self.items.get(it).is_some_and(|it| !it.name.is_empty()));
        match (item.name.is_empty(), other) {
            _ if item.has_datagrams() => None,
            (false, None) if !item.is(socket_flag::OUTSIDE) => Some((inode, false)),
            (false, _) if self.listener(item).is_some() => Some((inode, false)),
            (_, Some(other)) => Some((other, true)),
            _ => None,
        }
    }

    /// Where connections are made that are accepted as this one is, of doors by the inode number of such a one.
    fn door<'a, T>(&self, doors: &'a [(u64, T)], server: &Item) -> Option<&'a T> {
        let same = |(inode, _): &&(u64, T)| {
            let known = self.items.get(inode);
            known.is_some_and(|it| {
                (it.kind(), &it.name, &it.file) == (server.kind(), &server.name, &server.file)
            })
        };
        doors.iter().find(same).map(|(_, door)| door)
    }

    /// Makes pairs, and connections as far as that goes before others find the program's listeners. Sentences of those
    /// that have no name.
    fn prepare(&mut self) -> Result<Vec<String>> {
        let (others, mut unnamed, mut doors) = (unix::all(), Vec::new(), Vec::new());
        let mut ends = HashMap::new();
        for (inode, item) in &self.items {
            if item.is(socket_flag::WAITS) {
                let end = item.make_named(others.as_ref())?;
                let _ = options::restore(&end, &item.options, &[]);
                ends.insert(*inode, end);
            }
            if !self.leads(*inode, item) {
                continue;
            }
            let (mut one, mut two) = item.pair()?;
            let partner = self.partner(*inode);
            if let Some((at, turned)) = self.meeting(*inode, item)
                && let Some(server) = self.items.get(&at)
            {
                let is_open =
                    self.own_door(server).is_some() || self.door(&doors, server).is_some();
                let door = if is_open { None } else { self.open(server)? };
                if !is_open && door.is_none() {
                    let called = server.called();
                    unnamed.push(format!("a connection is without the name of {called}"));
                } else {
                    let client = if turned { Some(inode) } else { partner.as_ref() };
                    let client = client.and_then(|client| self.items.get(client));
                    let end = if turned { &mut one } else { &mut two };
                    *end = client
                        .map_or_else(|| server.make(), |it| it.make_named(others.as_ref()))?;
                }
                doors.extend(door.map(|door| (at, door)));
            }
            ends.insert(*inode, one);
            match partner {
                Some(partner) => ends.insert(partner, two),
                None => self.ghosts.insert(*inode, two),
            };
        }
        (self.ends, self.doors) = (ends, doors);
        Ok(unnamed)
    }

    /// A listener for connections that are accepted as this one is; the file of the program's is in its way.
    fn open(&self, server: &Item) -> Result<Option<Door>> {
        let file = self.listener(server).and_then(|(_, item)| Some((item, item.file.as_ref()?)));
        file.map_or(Ok(()), |(item, file)| item.clear(file, unix::all().as_ref()))?;
        Door::of(server)
    }

    /// The program's own listener of an abstract name, which only one can have.
    fn own_door(&self, server: &Item) -> Option<u64> {
        let hidden = server.name.first() == Some(&0);
        self.listener(server).filter(|_| hidden).map(|(inode, _)| inode)
    }

    /// Has listeners listen, with `room` for those who are in the way of ours, or as they did.
    fn listen(&self, deputy: Option<Deputy<'_>>, room: bool) -> Result<()> {
        let all = self.items.iter().filter(|(_, item)| item.is(socket_flag::LISTENS));
        for (inode, item) in all {
            let end = self.ends.get(inode);
            let backlog = Backlog::new(item.socket.backlog.cast_signed());
            let backlog = backlog.ok().filter(|_| !room).unwrap_or(Backlog::MAXCONN);
            let listens =
                act(deputy, item.socket.maker, || end.map_or(Ok(()), |end| listen(end, backlog)));
            listens.because(|| format!("cannot make {}", item.called()))?;
        }
        Ok(())
    }

    /// Connections of streams and packets.
    fn connect(&mut self, deputy: Option<Deputy<'_>>) -> Result<()> {
        let mut doors = std::mem::take(&mut self.doors);
        for (inode, item) in self.items.iter().filter(|(inode, item)| self.leads(**inode, item)) {
            let Some((at, turned)) = self.meeting(*inode, item) else { continue };
            let partner = self.partner(*inode);
            let other = partner.map_or(self.ghosts.get(inode), |it| self.ends.get(&it));
            let (Some(one), Some(two), Some(server)) =
                (self.ends.get(inode), other, self.items.get(&at))
            else {
                continue;
            };
            if self.door(&doors, server).is_none()
                && let Some(own) = self.own_door(server).and_then(|own| self.ends.get(&own))
            {
                doors.push((at, Door::at(own)?));
            }
            let Some(door) = self.door(&doors, server) else { continue };
            let why = || format!("cannot connect to {}", server.called());
            let client = if turned { Some(inode) } else { partner.as_ref() };
            let listener =
                client.and_then(|it| self.items.get(it)).map_or([0; 3], |it| it.socket.maker);
            if door.by.replace(listener) != listener {
                let listens = || listen(&door.listener, Backlog::MAXCONN);
                act(deputy, listener, listens).because(why)?;
            }
            let (accepted, end) = if turned { (two, one) } else { (one, two) };
            let connects = || {
                let made = door.connect(server, end)?;
                numbers::place(made.as_raw_fd(), accepted.as_raw_fd(), true);
                Ok(())
            };
            act(deputy, server.socket.maker, connects).because(why)?;
        }
        Ok(())
    }

    /// Has pairs made by whom they were, and gives names to those of datagrams, also where nobody has the other end.
    fn pair(&self, deputy: Option<Deputy<'_>>) -> Result<()> {
        let (others, mut pairs) = (unix::all(), Vec::new());
        for (inode, item) in self.items.iter().filter(|(inode, item)| self.leads(**inode, item)) {
            let partner = self.partner(*inode);
            let other = partner.map_or(self.ghosts.get(inode), |it| self.ends.get(&it));
            if let (Some(one), Some(two)) = (self.ends.get(inode), other)
                && self.meeting(*inode, item).is_none()
            {
                pairs.push((item, one, two, partner.and_then(|it| self.items.get(&it))));
            }
        }
        order::by_key(&mut pairs, |(item, ..)| (item.socket.maker[0].into(), 0));
        for same in pairs.chunk_by(|a, b| a.0.socket.maker == b.0.socket.maker) {
            let again = || {
                same.iter().try_for_each(|(item, one, two, _)| {
                    let pair = item.pair().map_err(|e| Errno::from_raw(e.errno()))?;
                    numbers::place(pair.0.as_raw_fd(), one.as_raw_fd(), true);
                    numbers::place(pair.1.as_raw_fd(), two.as_raw_fd(), true);
                    Ok(())
                })
            };
            // Without a deputy they are what they will be.
            let made = deputy.map_or(Ok(()), |_| act(deputy, same[0].0.socket.maker, again));
            made.because(|| "cannot make a pair of sockets")?;
        }
        for (item, one, two, other) in pairs {
            for (end, item) in [(one, Some(item)), (two, other)] {
                let bound = item.filter(|it| it.has_datagrams() && it.is(socket_flag::BOUND));
                bound.map(|item| item.bind(end, others.as_ref())).transpose()?;
            }
        }
        Ok(())
    }

    /// Whoever was given what stood for a socket has it now.
    fn hand_over(&self, all: &[Vec<Restored>]) {
        for Restored { record, origin } in all.iter().flatten() {
            if let Origin::Own(file) = origin
                && kind(record) == DescriptorKind::Socket
                && let Some(end) = self.ends.get(&record.inode)
            {
                numbers::place(end.as_raw_fd(), file.as_raw_fd(), true);
            }
        }
    }

    /// Whether a connection is made when this end of it comes: the first of two, or the only one.
    fn leads(&self, inode: u64, item: &Item) -> bool {
        let partner = self.partner(inode);
        partner.map_or(item.is(socket_flag::ABANDONED), |partner| partner > inode)
    }

    /// The listener that an accepted socket has its name from.
    fn listener(&self, accepted: &Item) -> Option<(u64, &Item)> {
        let named = |item: &Item| item.is(socket_flag::LISTENS) && item.name == accepted.name;
        let same = |item: &Item| item.socket.kind == accepted.socket.kind;
        let mut all = self.items.iter().map(|(inode, item)| (*inode, item));
        all.find(|(_, item)| named(item) && same(item))
    }

    fn set_options(&self, warnings: &mut Vec<String>) {
        for (inode, end) in &self.ends {
            let options = self.items.get(inode).map(|item| &item.options[..]).unwrap_or_default();
            set_options(end, options, warnings);
        }
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
    fn wait(&self, deputy: Option<Deputy<'_>>) -> Result<()> {
        let waits = |(_, item): &(&u64, &Item)| item.is(socket_flag::WAITS);
        let mut waiting: Vec<_> = self.items.iter().filter(waits).collect();
        order::by_key(&mut waiting, |(_, item)| (item.socket.place.into(), 0));
        let mut done: Vec<u64> = Vec::new();
        for (inode, item) in waiting {
            let at = item.socket.peer;
            let (Some(listener), Some(hears), Some(end)) =
                (self.items.get(&at), self.ends.get(&at), self.ends.get(inode))
            else {
                return Err(Error::new("a damaged socket"));
            };
            let meet =
                || listener.by_place(|address| nix::sys::socket::connect(end.as_raw_fd(), address));
            let alone = !done.contains(&at);
            let connects = || connect_through(hears, end, alone, &meet);
            let met = act(deputy, item.socket.maker, connects);
            met.because(|| format!("cannot connect to {}", listener.called()))?;
            done.push(at);
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
    let refused = options::restore(end, saved, &[]).into_iter();
    warnings.extend(refused.map(|what| format!("a socket {what}")));
}

/// Gives a socket its filter.
pub(super) fn restore_filter(end: &OwnedFd, saved: Option<&[u8]>, warnings: &mut Vec<String>) {
    if let Err(errno) = options::restore_filter(end, saved.unwrap_or_default()) {
        warnings
            .push(format!("a socket is without its filter (SO_ATTACH_FILTER): {}", errno.desc()));
    }
}

pub(super) const FLAGS: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_NOSIGNAL);
