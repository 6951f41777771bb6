// SPDX-License-Identifier: LGPL-2.1-only
//! The pairs of socketpair(2), where the kernel tells nothing of unix sockets (small machines, modules that are not there).
//!
//! Neither end has a name, while connections to a listener have its; both were made at once, one after the other, so their
//! inode numbers follow each other (net/socket.c, __sys_socketpair); and what one has sent waits in the other. One whose
//! other end is gone is told so (POLLHUP). Where more than one answer is possible there is none.

use super::inet::named;
use super::{drain, options, queue};
use crate::proc::Process;
use crate::proc::unix::{self, Unix};
use crate::ptrace::borrowed;
use crate::resource::descriptor::{file_type, tables::Table};
use nix::libc;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;

/// Neither end has a name: only a family.
const UNNAMED: usize = 2;

/// One end.
struct End {
    kind: i32,
    /// struct ucred of who has made it.
    maker: [u8; 12],
    readable: usize,
    unread: usize,
    /// It receives no more.
    ended: bool,
    /// Nobody has the other.
    alone: bool,
}

impl End {
    /// None of another kind of socket.
    fn of(fd: &OwnedFd) -> Option<Self> {
        let are_unnamed = [false, true].iter().all(|peer| named(fd, *peer).len() == UNNAMED);
        if options::get(fd, options::DOMAIN) != Some(libc::AF_UNIX) || !are_unnamed {
            return None;
        }
        let mut maker = [0; 12];
        options::ask(fd, options::MAKER, &mut maker);
        Some(Self {
            kind: options::get(fd, options::TYPE)?,
            maker,
            readable: drain::readable(fd),
            unread: drain::unsent(fd),
            ended: queue::answers(fd, libc::POLLRDHUP),
            alone: queue::answers(fd, libc::POLLHUP),
        })
    }

    /// Whether another may be its other end.
    fn fits(&self, other: &Self) -> bool {
        let fits = |a: &Self, b: &Self| (a.readable > 0) == (b.unread > 0);
        let datagrams = self.kind == libc::SOCK_DGRAM;
        (self.kind, self.maker) == (other.kind, other.maker)
            && (datagrams || fits(self, other) && fits(other, self))
    }

    fn with(&self, peer: u64, shutdown: u8) -> Unix {
        let (kind, readable) = (self.kind as u8, self.readable as u32);
        Unix { kind, state: 1, peer: Some(peer), shutdown, readable, ..Unix::default() }
    }
}

/// One with its inode number.
type Numbered = (u64, End);

/// Those of processes, by inode number.
pub(crate) fn all(of: &[Table]) -> HashMap<u64, Unix> {
    let (mut known, mut ends, mut seen) = (HashMap::new(), BTreeMap::new(), HashSet::new());
    for table in of {
        for fd in &table.fds {
            if file_type(fd.mode) != libc::S_IFSOCK || !seen.insert(fd.inode) {
                continue;
            }
            let ours = borrowed::take(table.pid, fd.number.cast_signed()).ok();
            match ours.as_ref().and_then(End::of) {
                Some(end) if end.alone => drop(known.insert(fd.inode, end.with(0, 3))),
                Some(end) => drop(ends.insert(fd.inode, end)),
                None => {}
            }
        }
    }
    let process = of.first().and_then(|table| Process::glimpse(table.pid).ok());
    let mut others = process.map(|it| unix::unnamed(&it)).unwrap_or_default();
    others.retain(|inode| !seen.contains(inode));
    for run in runs(ends) {
        known.extend(pairs(&run, &others).into_iter().flatten());
    }
    known
}

/// Ends whose numbers follow each other. Behind the last of a thousand or so a CPU goes on with other ones (fs/inode.c,
/// get_next_ino).
fn runs(ends: BTreeMap<u64, End>) -> Vec<Vec<Numbered>> {
    const BATCH: u64 = 1024;
    let mut runs: Vec<Vec<Numbered>> = Vec::new();
    for (inode, end) in ends {
        match runs.last_mut() {
            Some(run) if run.last().is_some_and(|(last, _)| last + 1 == inode) => {
                run.push((inode, end));
            }
            _ => runs.push(vec![(inode, end)]),
        }
    }
    let places = |at: u64, end: fn(&[Numbered]) -> Option<&Numbered>| -> Vec<usize> {
        let is_there = |run: &[Numbered]| end(run).is_some_and(|(inode, _)| inode % BATCH == at);
        let is = |place: &usize| !runs[*place].len().is_multiple_of(2) && is_there(&runs[*place]);
        (0..runs.len()).filter(is).collect()
    };
    let (last, first) = (places(0, <[_]>::last), places(1, <[_]>::first));
    if let ([last], [first]) = (&last[..], &first[..])
        && last != first
    {
        let behind = std::mem::take(&mut runs[*first]);
        runs[*last].extend(behind);
    }
    runs
}

/// The pairs among ends whose numbers follow each other; None if they could be others.
fn pairs(run: &[Numbered], others: &HashSet<u64>) -> Option<Vec<(u64, Unix)>> {
    let alone =
        |(inode, _): &Numbered| !others.contains(&(inode - 1)) && !others.contains(&(inode + 1));
    let is_clear = run.iter().all(alone);
    let mut found = Vec::new();
    for pair in run.chunks(2) {
        let [(one, a), (other, b)] = pair else { return None };
        if !is_clear || !a.fits(b) {
            return None;
        }
        let shutdown = |own: &End, peer: &End| u8::from(own.ended) | u8::from(peer.ended) << 1;
        found.push((*one, a.with(*other, shutdown(a, b))));
        found.push((*other, b.with(*one, shutdown(b, a))));
    }
    Some(found)
}
