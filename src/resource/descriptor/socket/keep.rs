// SPDX-License-Identifier: LGPL-2.1-only
//! Connections to others that go on (`--keep-tcp`): last in a checkpoint that ends the program, when all else is written,
//! they are made deaf, looked at, and held; first in a restart they are had from their holder, or made again.

use super::connect::Item;
use super::hold::{Held, Keeping, are_held, taken};
use super::inet::called;
use super::ports::is_here;
use super::{inet, repair};
use crate::error::{Error, Result};
use crate::fault::{Point, reach};
use crate::proc::tree::{self, ById, Kin};
use crate::proc::{Pid, Process};
use crate::ptrace::raw;
use crate::resource::Gathered;
use crate::resource::descriptor::{DescriptorKind, is_first, kind, pipe};
use crate::resource::losses::List;
use crate::settings::fresh_run;
use ckpt_abi::image::{KeptTcp, Socket, socket_flag};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, PoisonError};
use zerocopy::{FromBytes, IntoBytes};

/// A connection that is to go on: of which process, and where its record is.
struct Wanted {
    index: usize,
    fd: u32,
    inode: u64,
}

/// Looks at the connections that are to go on, whose processes stand still, and has them held; whatever cannot be is
/// named as one that is reset.
pub(crate) fn keep(all: &mut [Gathered], pids: &[Pid]) -> Option<Keeping> {
    let wanted = wanted(all);
    if wanted.is_empty() {
        return None;
    }
    let (strangers, hidden) = strangers(&wanted, pids);
    let has_hidden = !hidden.is_empty() && are_near(pids, &hidden);
    let (mut held, mut known) = (Vec::new(), Vec::new());
    for one in wanted {
        let ours = raw::take_descriptor(pids[one.index], one.fd.cast_signed());
        match ours.ok().filter(|_| !has_hidden && !strangers.contains(&one.inode)) {
            Some(fd) => {
                let late = repair::late(&fd);
                held.push(Held { fd, late, place: held.len() as u32 });
                known.push(one);
            }
            None => {
                let why = match has_hidden {
                    true => "other processes may have it, too, and do not let us look",
                    false => "other processes have it, too",
                };
                name_reset(&mut all[one.index], one.fd, why);
            }
        }
    }
    let token = fresh_run();
    let keeping = (!held.is_empty()).then(|| Keeping::begin(held, token).ok()).flatten();
    let Some(keeping) = keeping else {
        let why = "no process can be made that holds it";
        known.iter().for_each(|one| name_reset(&mut all[one.index], one.fd, why));
        return None;
    };
    for (one, held) in known.iter().zip(keeping.held()) {
        let captured = repair::deafen(&held.fd)
            .map_err(|errno| Error::new(errno.desc()))
            .and_then(|()| repair::capture(&held.fd));
        match captured {
            Ok(mut captured) => {
                (captured.kept.token, captured.kept.place) = (token, held.place);
                put(&mut all[one.index], one.fd, &captured);
            }
            Err(error) => {
                repair::undo(&held.fd, held.late);
                name_reset(&mut all[one.index], one.fd, &error.to_string());
            }
        }
    }
    reach(Point::Deafened);
    Some(keeping)
}

fn wanted(all: &[Gathered]) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    for (index, gathered) in all.iter().enumerate() {
        let ours = gathered.descriptors.iter().filter(|record| {
            kind(record) == DescriptorKind::Socket && is_first(record, gathered.number)
        });
        for record in ours {
            let is_kept = read(gathered, record.fd).is_some_and(|(socket, _)| {
                socket.family != 0 && socket.flags & socket_flag::KEPT != 0
            });
            wanted.extend(is_kept.then_some(Wanted { index, fd: record.fd, inode: record.inode }));
        }
    }
    wanted
}

/// The record of a socket, and all its pieces.
fn read(gathered: &Gathered, fd: u32) -> Option<(Socket, Vec<Vec<u8>>)> {
    let content = gathered.contents.iter().find(|content| content.index == fd)?;
    let pieces = pipe::unframed(&content.bytes)?;
    let (socket, _) = Socket::read_from_prefix(pieces.first()?).ok()?;
    Some((socket, pieces.into_iter().map(<[u8]>::to_vec).collect()))
}

fn write(gathered: &mut Gathered, fd: u32, pieces: &[Vec<u8>]) {
    let content = gathered.contents.iter_mut().find(|content| content.index == fd);
    content.into_iter().for_each(|content| content.bytes = pipe::framed(pieces));
}

/// Writes down what was seen of a connection.
fn put(gathered: &mut Gathered, fd: u32, captured: &repair::Captured) {
    let Some((_, mut pieces)) = read(gathered, fd) else { return };
    pieces.truncate(4);
    pieces.push(captured.kept.as_bytes().to_vec());
    pieces.extend([captured.sent.clone(), captured.come.clone()]);
    write(gathered, fd, &pieces);
}

/// It is one that a restart finds reset.
fn name_reset(gathered: &mut Gathered, fd: u32, why: &str) {
    let Some((mut socket, mut pieces)) = read(gathered, fd) else { return };
    socket.flags &= !socket_flag::KEPT;
    let remote = pieces.get(3).map(|name| called(name)).unwrap_or_default();
    pieces[0] = socket.as_bytes().to_vec();
    write(gathered, fd, &pieces);
    gathered.lists.push((List::Reset, format!("{fd} (TCP to {remote}: {why})")));
}

/// What a process has open, as far as it is told without a look at each: when it began, and how many descriptors it has,
/// which Linux tells from 6.2 on.
type Mark = (u64, u64);

/// The inode numbers of the sockets that a process has open; None: it does not let us look.
type Open = Option<Vec<u64>>;

/// The sockets of all processes at an earlier look.
static SEEN: Mutex<BTreeMap<u32, (Mark, Open)>> = Mutex::new(BTreeMap::new());

fn mark(pid: u32) -> Option<Mark> {
    let process = Process::glimpse(Pid::of_word(pid)).ok()?;
    let count = std::fs::metadata(process.path("fd")).ok()?.len();
    let began = process.main_stat().ok()?.starttime;
    (count != 0).then_some((began, count))
}

/// Looks at the sockets of all processes while the program goes on: where there are many that takes seconds. Who has as
/// many descriptors later on is taken to have the same.
pub(crate) fn look_ahead() {
    if !repair::is_allowed() {
        return;
    }
    let found = processes().filter_map(|pid| Some((pid, (mark(pid)?, sockets(pid)))));
    let mut seen = BTreeMap::new();
    seen.extend(found);
    *SEEN.lock().unwrap_or_else(PoisonError::into_inner) = seen;
}

fn processes() -> impl Iterator<Item = u32> {
    tree::pids().unwrap_or_default().into_iter().map(Pid::word)
}

/// Those of one process.
fn sockets(pid: u32) -> Open {
    let Ok(process) = Process::glimpse(Pid::of_word(pid)) else { return Some(Vec::new()) };
    let all = match std::fs::read_dir(process.path("fd")) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => return None,
        all => all.into_iter().flatten().flatten(),
    };
    let inode = |fd: std::fs::DirEntry| {
        let link = std::fs::read_link(fd.path()).ok()?;
        let inode = link.as_os_str().as_bytes().strip_prefix(b"socket:[")?;
        std::str::from_utf8(inode).ok()?.strip_suffix(']')?.parse().ok()
    };
    Some(all.filter_map(inode).collect())
}

/// Those of the connections that processes outside have, too: these go on. And of whom nobody may see what they have.
fn strangers(wanted: &[Wanted], pids: &[Pid]) -> (HashSet<u64>, HashSet<Pid>) {
    let inside: HashSet<u32> =
        pids.iter().map(|pid| pid.word()).chain([std::process::id()]).collect();
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut found, mut hidden) = (HashSet::new(), HashSet::new());
    for pid in processes().filter(|pid| !inside.contains(pid)) {
        let known = seen.get(&pid).filter(|(old, _)| mark(pid) == Some(*old));
        let all = known.map_or_else(|| sockets(pid), |(_, all)| all.clone());
        if all.is_none() {
            hidden.insert(Pid::of_word(pid));
        }
        found.extend(
            all.into_iter().flatten().filter(|it| wanted.iter().any(|one| one.inode == *it)),
        );
    }
    (found, hidden)
}

/// Whether one of those who are `hidden` is in a session of the processes, or was made by one of them or of those who made
/// them, up to one who is hidden: such may have what they have.
fn are_near(pids: &[Pid], hidden: &HashSet<Pid>) -> bool {
    let Ok(all) = tree::everybody() else { return true };
    let by_id = ById::of(&all);
    let mut family = HashSet::new();
    for pid in pids {
        let mut next = Some(*pid);
        while let Some(kin) = next.and_then(|pid| by_id.get(pid))
            && kin.parent != Pid::NONE
            && !hidden.contains(&kin.pid)
            && family.insert(kin.pid)
        {
            next = Some(kin.parent);
        }
    }
    let sessions: HashSet<Pid> =
        pids.iter().filter_map(|pid| Some(by_id.get(*pid)?.session)).collect();
    let is_near = |kin: &&Kin| {
        sessions.contains(&kin.session)
            || std::iter::successors(Some(*kin), |kin| by_id.get(kin.parent))
                .take(all.len())
                .any(|kin| family.contains(&kin.pid))
    };
    hidden
        .iter()
        .filter_map(|pid| by_id.get(*pid))
        .filter(|kin| !kin.dead && !kin.ours)
        .any(|kin| is_near(&kin))
}

/// Of those of an image that go on, all are reset where that is asked for, or where we have not the right: the number of
/// their holder then, and how many these are, if we may end them there.
pub(super) fn settle(
    items: &mut BTreeMap<u64, Item>,
    wanted: bool,
    rehearsed: bool,
    warnings: &mut Vec<String>,
) -> Option<(u64, usize)> {
    let mut tokens = items.values().filter_map(|item| Some(item.kept.as_ref()?.0.token));
    let (token, count) = (tokens.next()?, tokens.count() + 1);
    let allowed = repair::is_allowed();
    if wanted && allowed {
        return None;
    }
    if wanted {
        warnings.push(format!("connections to others are reset: {RIGHT}"));
    }
    items.values_mut().for_each(|item| item.kept = None);
    if !allowed && !rehearsed && are_held(token) {
        warnings.push(HELD.into());
    }
    (allowed && !rehearsed).then_some((token, count))
}

/// What those learn who may not end what is held.
const HELD: &str = "the other ends of the connections that are reset do not hear of it, since a process of the checkpoint holds them still: end that (ckpt-tcp; by itself it does so after 15 minutes), as root or whoever saved";

/// Ends connections that are held, so that their other ends hear of it.
pub(super) fn end((token, count): (u64, usize)) {
    taken(token, count).iter().for_each(|(_, end)| repair::reset(end));
}

/// What keeping them takes.
pub(crate) const RIGHT: &str = "to keep them (--keep-tcp) takes the capability NET_ADMIN";

/// The addresses of those that go on which this machine has not.
pub(super) fn problems(items: &BTreeMap<u64, Item>) -> Vec<String> {
    let kept = items.values().filter(|item| item.kept.is_some());
    let absent = kept.filter(|item| inet::place(&item.local).is_some_and(|(ip, _)| !is_here(ip)));
    let mut all: Vec<String> = absent
        .map(|item| {
            let (here, there) = (called(&item.local), called(&item.remote));
            format!("this machine has not the address of the connection from {here} to {there}, which was kept: give it that, or say --keep-tcp=0, which has it reset")
        })
        .collect();
    all.dedup();
    all
}

/// Has those that go on from their holder, or makes them again.
///
/// # Errors
/// One cannot be made.
pub(super) fn all(items: &BTreeMap<u64, Item>) -> Result<HashMap<u64, OwnedFd>> {
    let kept: Vec<_> =
        items.iter().filter_map(|(inode, item)| Some((inode, item, item.kept.as_ref()?))).collect();
    let Some((_, _, (first, _))) = kept.first() else { return Ok(HashMap::new()) };
    let mut there: HashMap<u32, OwnedFd> = taken(first.token, kept.len()).into_iter().collect();
    let mut ends = HashMap::new();
    for (inode, item, (record, sent)) in kept {
        let held = there.remove(&record.place).filter(|end| repair::is(end, item));
        let end = held.map_or_else(|| repair::make(item, record, sent), Ok)?;
        ends.insert(*inode, end);
    }
    Ok(ends)
}

/// What an image says of one, and what was sent: the first of what comes behind the name of the other end.
pub(super) fn recorded(socket: &Socket, rest: &mut &[&[u8]]) -> Option<(KeptTcp, Vec<u8>)> {
    if socket.flags & socket_flag::KEPT == 0 {
        return None;
    }
    let [kept, sent, come @ ..] = *rest else { return None };
    *rest = come;
    Some((KeptTcp::read_from_prefix(kept).ok()?.0, sent.to_vec()))
}
