// SPDX-License-Identifier: LGPL-2.1-only
//! Sockets that processes of the checkpoint have among themselves: pairs and connections with what is under way in them,
//! those that listen or wait to be accepted, and ends that nobody has the other of. Here those of unix(7).

mod arrived;
mod chosen;
mod connect;
mod door;
mod drain;
mod fill;
pub(crate) mod flight;
mod hold;
mod inet;
mod item;
mod keep;
mod make;
mod minder;
mod multicast;
mod name;
mod options;
mod pairs;
mod plain;
mod ports;
mod queue;
mod repair;

use super::{Content, Kind, Look, Loss, Opening, Origin, Saving, file_type, lost, pipe, standard};
use crate::error::{Because, Result};
use crate::proc::fds::Fd;
use crate::proc::unix::{LISTENS, Unix};
use crate::ptrace::borrowed;
use ckpt_abi::image::{Descriptor, Socket, socket_flag};
use nix::libc;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use queue::Waiting;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use zerocopy::{FromZeros, IntoBytes};

pub(crate) use hold::Keeping;
pub(crate) use inet::{Inet, all as inet, connections, end_at_once};
pub(crate) use keep::{RIGHT, keep, look_ahead};
pub(crate) use make::{Deputy, Made};
pub(super) use multicast::Groups;
pub(crate) use pairs::all as pairs;
pub(crate) use repair::{ROOM, is_allowed, let_go};

pub(super) const KIND: Kind = Kind { recognise, save, open };

/// What a socket is tied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tie {
    /// Nothing.
    None,
    /// The socket of this inode number, which is in the checkpoint.
    Peer(u64),
    /// An end that nobody has any more.
    Abandoned,
    /// An end that is not in the checkpoint: a restart finds the connection reset.
    Outside,
    /// The datagram socket of this inode number, which is not in the checkpoint; it is found again by its name.
    Named(u64),
    /// It waits in the queue of this listener, at this place.
    Waits(u64, u32),
}

/// Whether the checkpoint has a socket of its own: a standard stream of the first process is somebody else's.
fn is_inside(inode: u64, look: &Look<'_>) -> bool {
    let mut all = look.tables.everywhere().map(|(_, fd)| fd);
    let same = |f: &&Fd| f.inode == inode && file_type(f.mode) == libc::S_IFSOCK;
    all.find(same).is_some_and(|f| !look.at_start.contains(&standard::at_start(f)))
}

/// Whether the processes of the checkpoint hold both ends of a connection.
pub(crate) fn has_both_ends(fd: &Fd, look: &Look<'_>) -> bool {
    matches!(judge(fd, look), Some((_, Tie::Peer(_))))
        || matches!(inet::judge(fd, look), Some((_, Tie::Peer(_))))
}

/// What the kernel tells of a socket, if it can be made again.
fn judge<'a>(fd: &Fd, look: &'a Look<'_>) -> Option<(&'a Unix, Tie)> {
    const SHUT: u8 = 3;
    if file_type(fd.mode) != libc::S_IFSOCK {
        return None;
    }
    let sockets = look.tables.sockets();
    let unix = sockets.get(&fd.inode)?;
    let datagrams = i32::from(unix.kind) == libc::SOCK_DGRAM;
    let waits = || {
        let place = |(inode, it): (&u64, &Unix)| {
            let place = it.waiting.iter().position(|waiting| *waiting == fd.inode)?;
            Some((*inode, place as u32))
        };
        let found = sockets.iter().find_map(place);
        found.filter(|(listener, _)| is_inside(*listener, look))
    };
    let tie = match unix.peer {
        None if datagrams && unix.name.is_empty() && unix.readable > 0 => Tie::Abandoned,
        None if datagrams || unix.state != 1 => Tie::None,
        Some(peer) if is_inside(peer, look) => Tie::Peer(peer),
        Some(peer) if datagrams => match sockets.get(&peer) {
            Some(other) if matches!(other.name.first(), Some(0 | b'/')) => Tie::Named(peer),
            Some(_) => Tie::Outside,
            None => Tie::Abandoned,
        },
        Some(peer) if sockets.contains_key(&peer) => Tie::Outside,
        _ if unix.shutdown == SHUT => Tie::Abandoned,
        _ => waits().map_or(Tie::Outside, |(listener, place)| Tie::Waits(listener, place)),
    };
    Some((unix, tie))
}

fn recognise(fd: &Fd, look: &Look<'_>) -> bool {
    judge(fd, look).is_some() || inet::judge(fd, look).is_some()
}

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    if let Some((own, tie)) = inet::judge(fd, look) {
        return inet::save(fd, own, tie, look, saving);
    }
    let Some((unix, tie)) = judge(fd, look) else {
        lost::lose(fd, look, saving, "a connection");
        return Ok(());
    };
    if tie == Tie::Outside {
        reset(fd, look, saving, "a unix socket");
    }
    let why = || format!("cannot look into the socket behind descriptor {}", fd.number);
    let ours = borrowed::look_into(look.process.pid(), fd.number, why)?;
    let options = save_options(&ours, saving);
    let waiting = match look.tables.flight.take(fd.inode) {
        Some(known) => known,
        None => strange(waiting(&ours, unix, look.tables.untouched)?, saving),
    };
    let maker = getsockopt(&ours, PeerCredentials);
    let maker = maker.map_or([0; 3], |it| [it.pid().cast_unsigned(), it.uid(), it.gid()]);
    let (kind, shutdown) = (unix.kind.into(), unix.shutdown.into());
    let mut socket = Socket { kind, shutdown, maker, ..Socket::new_zeroed() };
    match tie {
        Tie::None if unix.name.is_empty() && !waiting.messages.is_empty() => {
            socket.flags |= socket_flag::ABANDONED;
        }
        Tie::None => {}
        Tie::Peer(peer) => socket.peer = peer,
        Tie::Abandoned => {
            socket.flags |= socket_flag::ABANDONED;
            let reset = queue::answers(&ours, libc::POLLERR);
            socket.flags |= if reset { socket_flag::RESET } else { 0 };
        }
        Tie::Outside => {
            socket.flags |= socket_flag::ABANDONED | socket_flag::RESET | socket_flag::OUTSIDE;
        }
        Tie::Named(_) => socket.flags |= socket_flag::CONNECTS,
        Tie::Waits(listener, place) => {
            socket.flags |= socket_flag::WAITS;
            (socket.peer, socket.place) = (listener, place);
            // Nobody can ask who has connected it.
            let status = look.process.main_status()?;
            socket.maker = [look.inner_pid.word(), status.uid[1], status.gid[1]];
        }
    }
    if unix.state == LISTENS {
        socket.flags |= socket_flag::LISTENS;
        socket.backlog = unix.unread;
    }
    if let Some(file) = file(unix, look) {
        let found = file.metadata().because(|| format!("cannot look at {}", file.display()))?;
        (socket.mode, socket.user, socket.group) =
            (found.mode() & 0o7777, found.uid(), found.gid());
        saving.path = file.into();
    }
    if unix.is_bound() {
        socket.flags |= socket_flag::BOUND;
    }
    name_what_is_left(unix, tie, &waiting, look, saving);
    let mut pieces = vec![socket.as_bytes().to_vec(), unix.name.clone(), options];
    if let Tie::Named(peer) = tie {
        pieces.push(look.tables.sockets().get(&peer).map(|it| it.name.clone()).unwrap_or_default());
    }
    for message in waiting.messages {
        pieces.extend((!is_stream(unix)).then_some(message.from));
        let numbers = message.sender.iter().chain(&message.rights);
        pieces.push(numbers.flat_map(|number| number.to_le_bytes()).collect());
        pieces.push(message.bytes);
    }
    saving.record.content = fd.number;
    saving.content = Some(Content { index: fd.number, bytes: pipe::framed(&pieces) });
    Ok(())
}

/// Names a connection that a restart finds reset.
fn reset(fd: &Fd, look: &Look<'_>, saving: &mut Saving, what: &str) {
    let what = format!("{} ({what})", fd.number);
    saving.losses.push(match lost::is_inherited(fd, look) {
        true => Loss::Inherited(what),
        false => Loss::Reset(what),
    });
}

/// The options of a socket, with its filter.
fn save_options(ours: &OwnedFd, saving: &mut Saving) -> Vec<u8> {
    let mut options = options::save(ours);
    if !options::save_filter(ours, &mut options) {
        let fd = saving.record.fd;
        saving.say(format!("the BPF program that descriptor {fd}, a socket, has (SO_ATTACH_BPF)"));
    }
    options
}

fn is_stream(unix: &Unix) -> bool {
    i32::from(unix.kind) == libc::SOCK_STREAM
}

/// What waits in a socket without the descriptors that come along, of which nobody keeps a record.
fn strange(mut waiting: Waiting, saving: &mut Saving) -> Waiting {
    let all = waiting.messages.iter_mut().map(|message| std::mem::take(&mut message.rights).len());
    if all.sum::<usize>() > 0 {
        let fd = saving.record.fd;
        saving.say(format!(
            "descriptors that others have sent to descriptor {fd} and nobody has received (SCM_RIGHTS)"
        ));
    }
    waiting
}

fn waiting(ours: &OwnedFd, unix: &Unix, untouched: bool) -> Result<Waiting> {
    if unix.state == LISTENS {
        return Ok(Waiting::default());
    }
    if untouched {
        return Ok(queue::glance(ours));
    }
    match is_stream(unix) {
        true => queue::stream(ours, unix.readable as usize),
        false => {
            let ended = unix.shutdown & 1 != 0 && i32::from(unix.kind) == libc::SOCK_SEQPACKET;
            queue::messages(ours, ended.then_some(unix.readable as usize))
        }
    }
}

/// The file that a socket is bound to, unless that is removed or another's.
fn file(unix: &Unix, look: &Look<'_>) -> Option<PathBuf> {
    if matches!(unix.name.first(), None | Some(0)) || unix.file.is_none() {
        return None;
    }
    let name = Path::new(OsStr::from_bytes(&unix.name));
    let path = match name.is_absolute() {
        true => name.to_path_buf(),
        false => look.process.cwd().ok()?.path.join(name),
    };
    let found = std::fs::symlink_metadata(&path).ok().filter(|m| m.file_type().is_socket())?;
    // An overlay may show another inode number than the kernel tells here; a later socket of that name shows its own.
    let there = Some(found.ino() as u32);
    let mut all = look.tables.sockets().values();
    (unix.file == there || !all.any(|other| other.file == there)).then_some(path)
}

fn gone_client(called: &str) -> String {
    format!(
        "{called} has a client in its queue that was gone before it was accepted: it can be saved when it has accepted that"
    )
}

/// What cannot be made again of a socket that can.
fn name_what_is_left(
    unix: &Unix,
    tie: Tie,
    waiting: &Waiting,
    look: &Look<'_>,
    saving: &mut Saving,
) {
    let called = match unix.name.split_first() {
        None => saving.path.display().to_string(),
        Some((0, name)) => format!("@{}", String::from_utf8_lossy(name)),
        Some(_) => String::from_utf8_lossy(&unix.name).into_owned(),
    };
    if tie == Tie::Outside {
        if waiting.unseen {
            let fd = saving.record.fd;
            saving.say(format!("what waits at descriptor {fd}, with urgent data among it"));
        }
        return;
    }
    if waiting.unseen {
        saving.passing.push(format!(
            "{called} has been sent something that cannot be saved before it is read: urgent data, or more \
             descriptors (SCM_RIGHTS) than a process may have"
        ));
    }
    if matches!(tie, Tie::Waits(..)) && unix.unread > 0 {
        saving.passing.push(format!(
            "{called} has sent data through a connection that nobody has accepted yet"
        ));
    }
    if waiting.doubtful {
        saving.say(queue::doubt(&called));
    }
    // Zero is the number of a client that is closed: nobody can tell whose it was, nor what it has sent.
    if unix.waiting.contains(&0) {
        saving.passing.push(gone_client(&called));
    }
    let waiting_open = unix.waiting.iter().filter(|inode| **inode != 0);
    let outside = waiting_open.filter(|inode| !is_inside(**inode, look)).count();
    if outside > 0 {
        saving.say(format!("{outside} connections of others that wait to be accepted at {called}"));
    }
    let known = |from: &[u8]| {
        let mut named = look.tables.sockets().iter().filter(|(_, it)| it.name == from);
        named.any(|(inode, _)| is_inside(*inode, look))
    };
    let lost = |m: &&queue::Message| !m.from.is_empty() && !known(&m.from);
    let strange = waiting.messages.iter().filter(lost).count();
    // One process has a new id, and nobody sends for others.
    let is_own = |sender: u32| sender == 0 || sender == look.inner_pid.word();
    let others = !waiting.messages.iter().all(|message| is_own(message.sender[0]));
    if strange > 0 || waiting.unknown_sender || look.tables.of.len() == 1 && others {
        saving.say(format!("who has sent what waits to be read from {called}"));
    }
}

/// All are made when the first is asked for, and fail as one.
fn open(record: &Descriptor, opening: &mut Opening<'_>) -> Result<Origin> {
    let made = match opening.sockets.take() {
        Some(made) => made,
        None => {
            opening.sockets = Some(Made::none());
            Made::of_all(opening)?
        }
    };
    let own = made.descriptor(record);
    opening.sockets = Some(made);
    own?.map_or_else(|| (lost::KIND.open)(record, opening), |own| Ok(Origin::Own(own)))
}
