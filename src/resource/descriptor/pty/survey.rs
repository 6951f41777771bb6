// SPDX-License-Identifier: LGPL-2.1-only
//! Which pseudo-terminals have both ends among the processes of a checkpoint, and all that is to be known of them.

use super::super::{Tables, standard, terminal};
use super::queue::{self, Asked, Waiting, answers};
use super::settings::{EXCLUSIVE, LOCK, PACKETS, hides_cloexec, number, termios, window};
use crate::error::Result;
use crate::proc::Pid;
use crate::proc::{self, Process, fds::Fd};
use crate::ptrace::{borrowed, raw};
use ckpt_abi::image::{Terminal, Termios, pty_end, terminal_flag};
use nix::errno::Errno;
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::stat::{major, minor};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use zerocopy::FromZeros;

/// A descriptor: process and number.
type Of = (Pid, u32);

/// One of them.
pub(super) struct Pty {
    pub(super) record: Terminal,
    pub(super) waiting: Waiting,
    /// The first descriptor of it.
    pub(super) first: Of,
    /// Its line discipline, if it is not the usual one (N_TTY).
    pub(super) strange: bool,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Ptys {
    pub(super) all: BTreeMap<u32, Pty>,
    /// What a descriptor is: number and [`pty_end`].
    ends: HashMap<Of, (u32, u32)>,
    /// Descriptors that do not close on exec, whatever /proc says.
    inherited: HashSet<Of>,
}

/// A pseudo-terminal whose master is here.
struct Found {
    master: OwnedFd,
    /// Device number of the file system of its slave.
    instance: u64,
    slave: Option<OwnedFd>,
    first: Of,
}

impl Ptys {
    /// Looks for them.
    ///
    /// # Errors
    /// A descriptor cannot be looked at.
    pub(crate) fn find(tables: &Tables) -> Result<Self> {
        let mut found: BTreeMap<u32, Found> = BTreeMap::new();
        let (mut ends, mut inherited) = (HashMap::new(), HashSet::new());
        let all = || tables.everywhere().filter(|(_, fd)| is_character(fd));
        for (pid, fd) in all() {
            let Some(number) = master_of(fd) else { continue };
            let instance = instance(pid, fd);
            let Ok(master) = raw::take_descriptor(pid, fd.number.cast_signed()) else { continue };
            let first = (pid, fd.number);
            let known = found.entry(number);
            let known = known.or_insert(Found { master, instance, slave: None, first });
            if known.instance == instance {
                ends.insert(first, (number, pty_end::MASTER));
            }
        }
        for (pid, fd) in all() {
            let of = (pid, fd.number);
            let outer = tables.at_start.contains(&standard::at_start(fd));
            let is_slave = super::number_of(fd.rdev).is_some();
            if outer || !is_slave && (found.is_empty() || !terminal::is_own(fd.rdev)) {
                continue;
            }
            let Ok(slave) = borrowed::take(pid, fd.number.cast_signed()) else { continue };
            if is_slave && termios(&slave) == Err(Errno::EIO) {
                ends.insert(of, (0, pty_end::HUNG_UP));
                continue;
            }
            let number = number(&slave);
            let Some((number, pty)) = number.and_then(|n| Some((n, found.get_mut(&n)?))) else {
                continue;
            };
            if is_slave && fd.device != pty.instance {
                continue;
            }
            ends.insert(of, (number, pty_end::SLAVE));
            if fd.cloexec && fd.number < 3 && hides_cloexec(&slave) {
                // Nobody closes his standard streams on exec.
                inherited.insert(of);
            }
            pty.slave.get_or_insert(slave);
        }
        let mut ptys = Self { all: BTreeMap::new(), ends, inherited };
        ptys.examine(found, tables)?;
        // A restart opens them in this order, too.
        let mut met = HashSet::new();
        for of in all().map(|(pid, fd)| (pid, fd.number)) {
            let Some((number, _)) =
                ptys.end(of.0, of.1).filter(|(_, end)| *end != pty_end::HUNG_UP)
            else {
                continue;
            };
            if let Some(pty) = ptys.all.get_mut(&number).filter(|_| met.insert(number)) {
                pty.first = of;
            }
        }
        Ok(ptys)
    }

    /// The number of the pseudo-terminal behind a descriptor, and which end it is.
    pub(crate) fn end(&self, pid: Pid, fd: u32) -> Option<(u32, u32)> {
        self.ends.get(&(pid, fd)).copied()
    }

    /// Whether a descriptor closes on exec, of which /proc says so.
    pub(crate) fn closes_on_exec(&self, pid: Pid, fd: u32) -> bool {
        !self.inherited.contains(&(pid, fd))
    }

    /// Whether it is one of these.
    pub(crate) fn has(&self, number: u32) -> bool {
        self.all.contains_key(&number)
    }

    /// Asks about all that have both ends here, and forgets the others.
    fn examine(&mut self, mut found: BTreeMap<u32, Found>, tables: &Tables) -> Result<()> {
        let mut outside = None;
        found.retain(|number, pty| {
            let alone = pty.slave.is_none() && !answers(&pty.master, PollFlags::POLLHUP);
            let outside = alone.then(|| outside.get_or_insert_with(|| terminals_outside(tables)));
            outside.is_none_or(|outside| !outside.contains(number))
        });
        self.ends.retain(|_, (number, end)| *end == pty_end::HUNG_UP || found.contains_key(number));
        let mut asked = Vec::new();
        for (number, Found { master, slave, first, .. }) in found {
            let Ok(termios) = termios(&master) else { continue };
            let record = record(number, &master, slave.as_ref(), termios);
            let packets = record.flags & terminal_flag::PACKETS != 0;
            let strange = termios.line != 0;
            let pty = Pty { record, waiting: Waiting::default(), first, strange };
            self.all.insert(number, pty);
            if !strange {
                asked.push((number, Asked { master, slave, termios, packets }));
            }
        }
        // What waits is taken out and put back.
        if asked.is_empty() || tables.untouched {
            return Ok(());
        }
        let (numbers, asked): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
        for (number, waiting) in numbers.into_iter().zip(queue::look(&asked)?) {
            let Some(pty) = self.all.get_mut(&number) else { continue };
            pty.record.lines = waiting.lines;
            pty.record.flags |= if waiting.stopped { terminal_flag::STOPPED } else { 0 };
            pty.waiting = waiting;
        }
        Ok(())
    }
}

fn record(number: u32, master: &OwnedFd, slave: Option<&OwnedFd>, termios: Termios) -> Terminal {
    let mut flags = 0;
    let mut set = |is: bool, flag: u32| flags |= if is { flag } else { 0 };
    set(PACKETS.is_set(master), terminal_flag::PACKETS);
    set(LOCK.is_set(master), terminal_flag::LOCKED);
    set(EXCLUSIVE.is_set(master), terminal_flag::EXCLUSIVE_MASTER);
    set(slave.is_some_and(|slave| EXCLUSIVE.is_set(slave)), terminal_flag::EXCLUSIVE_SLAVE);
    let closed = answers(master, PollFlags::POLLHUP);
    set(slave.is_none() && closed, terminal_flag::CLOSED);
    set(slave.is_none() && !closed, terminal_flag::UNOPENED);
    let window = window(master).unwrap_or_default();
    let of_slave = slave.and_then(|slave| nix::sys::stat::fstat(slave).ok());
    let [mode, user, group] =
        of_slave.map_or([0; 3], |stat| [stat.st_mode, stat.st_uid, stat.st_gid]);
    Terminal { number, flags, window, termios, mode, user, group, ..Terminal::new_zeroed() }
}

pub(super) fn is_character(fd: &Fd) -> bool {
    super::super::file_type(fd.mode) == libc::S_IFCHR
}

/// The number of a master's slave (proc_pid_fdinfo(5), Linux 4.14).
fn master_of(fd: &Fd) -> Option<u32> {
    let is_master = (major(fd.rdev), minor(fd.rdev)) == (5, 2);
    fd.extra("tty-index").filter(|_| is_master)?.parse().ok()
}

/// The file system that has the slave of a master: the one in the folder `pts` beside where that was opened, or its own
/// (devpts, /dev/pts/ptmx).
fn instance(pid: Pid, fd: &Fd) -> u64 {
    let folder = Path::new(&fd.target).parent().and_then(|folder| folder.strip_prefix("/").ok());
    let process = Process::glimpse(pid).ok();
    let beside = process.as_ref().zip(folder);
    let beside = beside.map(|(it, folder)| Path::new(&it.path("root")).join(folder).join("pts"));
    let found = beside.and_then(|path| std::fs::metadata(path).ok());
    found.map_or(fd.device, |found| found.dev())
}

/// The numbers of the controlling terminals, and of what else is open, of all that are not in the checkpoint.
fn terminals_outside(tables: &Tables) -> HashSet<u32> {
    let inside: HashSet<Pid> = tables.of.iter().map(|table| table.pid).collect();
    let all = proc::tree::pids().unwrap_or_default().into_iter();
    let mut numbers = HashSet::new();
    for pid in all.filter(|pid| !inside.contains(pid)) {
        let Ok(process) = Process::glimpse(pid) else { continue };
        numbers.extend(super::number_of(terminal::of(&process)));
        let open = process.fds().unwrap_or_default();
        numbers.extend(open.iter().filter_map(|fd| super::number_of(fd.rdev)));
    }
    numbers
}
