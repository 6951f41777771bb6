// SPDX-License-Identifier: LGPL-2.1-only
//! The descriptor tables of all processes of a checkpoint, and which descriptors are one description.
//!
//! A description that several processes have is saved with the first of them; its further descriptors name that.

use super::pty::Ptys;
use super::socket::{self, Groups, Inet, flight::Flight};
use super::{Loss, file_type, sought, standard};
use crate::error::Result;
use crate::proc::fds::Fd;
use crate::proc::net::{self, Tcp};
use crate::proc::unix::{self, Unix};
use crate::proc::{Pid, Process};
use crate::ptrace::raw;
use ckpt_abi::image::Descriptor;
use nix::libc;
use std::cell::{OnceCell, RefCell};
use std::cmp::Ordering;
use std::collections::HashMap;

/// The descriptors of one process.
pub(crate) struct Table {
    /// The process.
    pub pid: Pid,
    /// By number.
    pub fds: Vec<Fd>,
}

/// All of them, in the order of the image's processes.
#[derive(Default)]
pub(crate) struct Tables {
    /// One for each process.
    pub of: Vec<Table>,
    /// What the standard streams of the first process were when it began: device, inode, access mode.
    pub at_start: [[u64; 3]; 3],
    /// What is under way between the processes may not even be looked at where that takes more than a look: they may go
    /// on, and find it moved, or looks beginning elsewhere.
    pub(crate) untouched: bool,
    /// TCP connections to others go on.
    pub(crate) keeps: bool,
    /// What is under way in sockets.
    pub(crate) flight: Flight,
    /// Where watches of theirs were looked for.
    pub(super) sought: RefCell<sought::Atlas>,
    /// The multicast groups of their network namespaces.
    pub(super) groups: Groups,
    /// The descriptors of each file, by device and inode number, as places in `of`; in the order of [`Self::everywhere`].
    files: HashMap<(u64, u64), Vec<(usize, usize)>>,
    leaders: HashMap<(u64, u64, u32), Ordered>,
    sockets: OnceCell<HashMap<u64, Unix>>,
    inet: OnceCell<HashMap<u64, Inet>>,
    tcp: OnceCell<Vec<Tcp>>,
    ptys: Ptys,
    /// The records of those that are the first of their description.
    saved: HashMap<Place, Descriptor>,
    /// What was said of those that are lost.
    lost: HashMap<Place, Loss>,
    /// What the last [`Self::leader`] could only guess, in words.
    guess: Option<String>,
}

/// Descriptions in the kernel's order, in pieces: one more among tens of thousands moves few of them.
#[derive(Default)]
struct Ordered(Vec<Vec<Place>>);

impl Ordered {
    /// Most in a piece.
    const MOST: usize = 256;

    /// The one that is equal, or where one belongs: the piece, and the place in it.
    fn find(
        &self,
        mut order: impl FnMut(&Place) -> Ordering,
    ) -> std::result::Result<Place, (usize, usize)> {
        let is_before = |piece: &Vec<Place>| piece.first().is_some_and(|one| order(one).is_le());
        let piece = self.0.partition_point(is_before).saturating_sub(1);
        let Some(places) = self.0.get(piece) else { return Err((0, 0)) };
        let found = places.binary_search_by(order);
        found.map(|at| places[at]).map_err(|at| (piece, at))
    }

    fn insert(&mut self, (piece, at): (usize, usize), place: Place) {
        let Some(places) = self.0.get_mut(piece) else { return self.0.push(vec![place]) };
        places.insert(at, place);
        if places.len() > Self::MOST {
            let rest = places.split_off(Self::MOST / 2);
            self.0.insert(piece + 1, rest);
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Place> {
        self.0.iter().flatten()
    }

    fn end(&self) -> (usize, usize) {
        self.0.last().map_or((0, 0), |last| (self.0.len() - 1, last.len()))
    }
}

/// Where a descriptor is: in which process of the image, under which number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// The process, from 0.
    pub process: u32,
    /// The number.
    pub fd: u32,
}

impl Tables {
    /// The tables of processes, which stand still unless all of it stays `untouched`; the first process's standard streams
    /// were `at_start` when it began.
    ///
    /// # Errors
    /// A pseudo-terminal cannot be looked at.
    pub(crate) fn new(
        mut of: Vec<Table>,
        at_start: [[u64; 3]; 3],
        untouched: bool,
    ) -> Result<Self> {
        let (flight, sockets) = match untouched {
            true => Default::default(),
            false => Flight::find(&mut of, &at_start)?,
        };
        let mut files: HashMap<_, Vec<_>> = HashMap::new();
        for (process, table) in of.iter().enumerate() {
            for (index, fd) in table.fds.iter().enumerate() {
                files.entry((fd.device, fd.inode)).or_default().push((process, index));
            }
        }
        let mut tables = Self { of, at_start, untouched, files, flight, ..Self::default() };
        sockets.into_iter().for_each(|all| drop(tables.sockets.set(all)));
        tables.ptys = Ptys::find(&tables)?;
        Ok(tables)
    }

    /// The pseudo-terminals that the processes have among themselves.
    pub(crate) fn ptys(&self) -> &Ptys {
        &self.ptys
    }

    /// Every descriptor of every process, with the process's id; the first of a file comes first.
    pub(crate) fn everywhere(&self) -> impl Iterator<Item = (Pid, &Fd)> {
        self.of.iter().flat_map(|table| table.fds.iter().map(|fd| (table.pid, fd)))
    }

    /// Those of them that are of one file.
    pub(crate) fn of_file(&self, fd: &Fd) -> impl Iterator<Item = (Pid, &Fd)> {
        let places = self.files.get(&(fd.device, fd.inode)).into_iter().flatten();
        places.map(|(process, index)| {
            let table = &self.of[*process];
            (table.pid, &table.fds[*index])
        })
    }

    /// What the kernel tells of all unix sockets, by inode number; asked once, when the processes stand still.
    pub(crate) fn sockets(&self) -> &HashMap<u64, Unix> {
        self.sockets.get_or_init(|| unix::all().unwrap_or_else(|| socket::pairs(&self.of)))
    }

    /// The TCP and UDP sockets of the processes, by inode number; looked at once, when they stand still.
    pub(crate) fn inet(&self) -> &HashMap<u64, Inet> {
        self.inet.get_or_init(|| socket::inet(self))
    }

    /// What the kernel tells of all TCP sockets of the first process's network namespace.
    pub(crate) fn tcp(&self) -> &[Tcp] {
        self.tcp.get_or_init(|| {
            let root = self.root().and_then(|root| Process::glimpse(root).ok());
            root.map(|root| net::tcp(&root)).unwrap_or_default()
        })
    }

    /// Keeps the record of a descriptor that is the first of its description, and why it is lost, if it is.
    pub(crate) fn keep(&mut self, record: Descriptor, losses: &[Loss]) {
        let place = Place { process: record.shared_process, fd: record.shared_with };
        self.saved.insert(place, record);
        let is_one = |loss: &&Loss| {
            matches!(loss, Loss::Descriptor(_) | Loss::Inherited(_) | Loss::Reset(_))
        };
        let lost = losses.iter().find(is_one).cloned();
        self.lost.extend(lost.map(|loss| (place, loss)));
    }

    /// Why a description that was kept is lost, if it is.
    pub(crate) fn lost(&self, leader: Place) -> Option<&Loss> {
        self.lost.get(&leader)
    }

    /// The processes.
    pub(crate) fn pids(&self) -> Vec<Pid> {
        self.of.iter().map(|table| table.pid).collect()
    }

    /// The first process, whose maker started them all.
    pub(crate) fn root(&self) -> Option<Pid> {
        self.of.first().map(|table| table.pid)
    }

    /// Which standard stream of the first process a file was when that began.
    pub(crate) fn standard(&self, fd: &Fd) -> Option<u32> {
        let file = standard::at_start(fd);
        let is = |number: &usize| self.at_start.get(*number) == Some(&file);
        let number = Some(fd.number as usize).filter(is).or_else(|| (0..3).find(is));
        number.map(|number| number as u32)
    }

    /// Which it is now.
    pub(crate) fn standard_now(&self, fd: &Fd) -> Option<u32> {
        let same = |f: &&Fd| f.number < 3 && standard::at_start(f) == standard::at_start(fd);
        self.of.first()?.fds.iter().find(same).map(|f| f.number)
    }

    /// What was kept.
    pub(crate) fn saved(&self, leader: Place) -> Option<Descriptor> {
        self.saved.get(&leader).copied()
    }

    /// What the last [`Self::leader`] has guessed, to be said as a loss.
    pub(crate) fn guessed(&mut self) -> Option<String> {
        self.guess.take()
    }

    /// The first descriptor of the same description; None for the first itself. They are asked in order.
    ///
    /// What could only be guessed is in [`Self::guessed`] then. kcmp(2) orders descriptions, so a thousand eventfds, which all have one inode, are searched
    /// in ten steps. Without it (CONFIG_KCMP, the filters of containers), what looks the same is taken for the same.
    pub(crate) fn leader(&mut self, process: u32, fd: &Fd) -> Option<Place> {
        let tables = &self.of;
        let group = self.leaders.entry((fd.device, fd.inode, fd.flags)).or_default();
        let pid = |process: u32| tables.get(process as usize).map_or(Pid::NONE, |table| table.pid);
        let own = (pid(process), fd.number);
        let mut blind = false;
        let mut found = group.find(|leader| {
            let order = raw::file_order((pid(leader.process), leader.fd), own);
            blind |= order.is_err();
            order.unwrap_or(Ordering::Less)
        });
        if blind {
            let twin = |place: &Place| {
                let fds = tables.get(place.process as usize).map(|table| &table.fds);
                let mut fds = fds.into_iter().flatten();
                fds.any(|f| f.number == place.fd && looks_same(f, fd, place.process == process))
            };
            found = group.iter().copied().find(twin).ok_or(group.end());
            let taken =
                found.ok().filter(|leader| is_doubtful(fd) && (leader.fd > 2 || fd.number > 2));
            self.guess = taken.map(|leader| {
                let (number, target, other) = (fd.number, fd.target.display(), leader.fd);
                let whose = pid(leader.process);
                format!(
                    "whether descriptor {number} ({target}) was opened apart from descriptor {other} of process {whose}, \
                     which this system lets nobody ask (kcmp(2)): a restart has one for both, with one offset"
                )
            });
        }
        match found {
            Ok(leader) => Some(leader),
            Err(at) => {
                group.insert(at, Place { process, fd: fd.number });
                None
            }
        }
    }
}

/// Whether descriptors that look the same may well have been opened apart: before the first byte of a file and at its end
/// stands whoever reads it, and what has no inode of its own has no offset.
fn is_doubtful(fd: &Fd) -> bool {
    let is_file = matches!(file_type(fd.mode), libc::S_IFREG | libc::S_IFDIR);
    let is_anonymous = fd.target.as_encoded_bytes().starts_with(b"anon_inode:");
    is_file && (fd.position == 0 || fd.position == fd.size)
        || is_anonymous && fd.extra("eventfd-id").is_none()
}

/// Whether two descriptors look as if they were of one description. All that have no inode of their own share one
/// (fs/anon_inodes.c): of these an eventfd has an id, and others are the same where a child has its parent's.
fn looks_same(one: &Fd, other: &Fd, in_one_process: bool) -> bool {
    if !one.target.as_encoded_bytes().starts_with(b"anon_inode:") {
        return one.position == other.position;
    }
    match (one.extra("eventfd-id"), other.extra("eventfd-id")) {
        (Some(own), Some(others)) => own == others,
        _ => !in_one_process && one.number == other.number && one.extra == other.extra,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_found_again_in_their_order() {
        let place = |fd: u32| Place { process: 0, fd };
        let mut ordered = Ordered::default();
        let numbers: Vec<u32> = (0..2000).map(|n| n * 7919 % 2003).collect();
        for number in &numbers {
            let at = ordered.find(|one| one.fd.cmp(number)).expect_err("it is new");
            ordered.insert(at, place(*number));
        }
        assert!(ordered.iter().map(|one| one.fd).is_sorted());
        assert_eq!(ordered.iter().count(), numbers.len());
        for number in numbers {
            assert_eq!(ordered.find(|one| one.fd.cmp(&number)), Ok(place(number)));
        }
        ordered.insert(ordered.end(), place(5000));
        assert_eq!(ordered.iter().last(), Some(&place(5000)));
    }
}
