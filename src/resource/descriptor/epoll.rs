// SPDX-License-Identifier: LGPL-2.1-only
//! epoll(7) instances.
//!
//! The kernel remembers a watched description together with the number it had when the watch was set, so
//! the watches can only be set when the restored descriptors have their numbers: by the restorer.

use super::open::{behind, ioctl, owned, reopened, standard};
use super::tables::Table;
use super::{
    Content, Kind, Look, Loss, Opening, Origin, Place, Restored, Saving, access, file_type, kind,
    numbers,
};
use crate::error::{Because, Result};
use crate::order;
use crate::proc::Pid;
use crate::proc::fds::{Fd, UNDER_WAY, shown};
use crate::proc::fork::{end, fork, helper};
use crate::ptrace::raw;
use crate::resource::plan::{Arena, Orders, Step};
use ckpt_abi::image::{Descriptor, DescriptorKind, EpollEntry};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use zerocopy::{FromBytes, IntoBytes};

pub(super) const KIND: Kind = Kind { recognise, save, open };

/// What EPOLLONESHOT leaves of a watch that has fired (fs/eventpoll.c, EP_PRIVATE_BITS): EPOLLEXCLUSIVE,
/// EPOLLWAKEUP, EPOLLONESHOT, EPOLLET.
const PRIVATE: u32 = 0xf000_0000;

/// EPIOCGPARAMS and EPIOCSPARAMS, for the eight bytes of a struct epoll_params (ioctl_eventpoll(2), Linux 6.9).
const GET_PARAMS: libc::Ioctl = 0x8008_8a02_u32 as libc::Ioctl;
const SET_PARAMS: libc::Ioctl = 0x4008_8a01;

fn recognise(fd: &Fd, _: &Look<'_>) -> bool {
    fd.target == "anon_inode:[eventpoll]"
}

/// The watches of an instance, from its fdinfo (proc_pid_fdinfo(5)).
fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    let lines = fd.extra.iter().filter(|(key, _)| key == "tfd");
    let mut entries: Vec<EpollEntry> = Vec::new();
    for mut entry in lines.filter_map(|(_, value)| entry(value)) {
        let nth = entries.iter().filter(|e| e.fd == entry.fd).count() as u32;
        let elsewhere =
            || look.tables.of.iter().find_map(|table| source(fd, &entry, nth, table, look));
        let of = |table: &&Table| table.pid == look.process.pid();
        let own = look.tables.of.iter().find(of);
        let mut found = own.and_then(|own| source(fd, &entry, nth, own, look));
        if fd.number & UNDER_WAY != 0 {
            found = found.or_else(elsewhere);
        }
        if found.is_none() {
            saving.losses.push(Loss::Sentence(format!(
                "what epoll descriptor {} watches under the number {}, which another process has open",
                shown(fd.number), entry.fd
            )));
        }
        let (pid, number) = found.unwrap_or((look.process.pid(), NO_SOURCE));
        let process = look.tables.of.iter().position(|table| table.pid == pid);
        (entry.source, entry.process) = (number, process.unwrap_or(0) as u32);
        entries.push(entry);
    }
    if fd.number & UNDER_WAY == 0
        && let Ok(ours) = look.ours(fd)
    {
        let _ = ioctl(ours, GET_PARAMS, &mut saving.record.value);
    }
    saving.record.content = fd.number;
    saving.content = Some(Content { index: fd.number, bytes: entries.as_bytes().to_vec() });
    Ok(())
}

/// [`EpollEntry::source`] of what the program has not open itself.
const NO_SOURCE: u32 = u32::MAX;

/// The descriptor of a process that is the watched description: the number at the time of the watch may be closed, or
/// another file's, while a duplicate lives on.
fn source(
    epoll: &Fd,
    entry: &EpollEntry,
    nth: u32,
    table: &Table,
    look: &Look<'_>,
) -> Option<(Pid, u32)> {
    let pid = table.pid;
    let own = table.fds.iter().find(|f| f.number == entry.fd && f.inode == entry.inode);
    // A socket's inode is of one description alone.
    if let Some(own) = own
        && file_type(own.mode) == libc::S_IFSOCK
    {
        return Some((pid, own.number));
    }
    let others = table.fds.iter().filter(|f| f.number != entry.fd && f.inode == entry.inode);
    for fd in own.into_iter().chain(others) {
        let epoll = (look.process.pid(), epoll.number);
        match raw::is_watched((pid, fd.number), epoll, entry.fd, nth) {
            Ok(true) => return Some((pid, fd.number)),
            Ok(false) => {}
            // Without kcmp(2) the number is taken at its word.
            Err(_) => return own.map(|own| (pid, own.number)),
        }
    }
    None
}

/// "       5 events:       1d data: ffffffffffffffff pos:0 ino:61af sdev:7"
fn entry(value: &str) -> Option<EpollEntry> {
    let mut words =
        value.split(|c: char| c.is_ascii_whitespace() || c == ':').filter(|w| !w.is_empty());
    let fd = words.next()?.parse().ok()?;
    let mut field = |name: &str| -> Option<u64> {
        let mut found = words.by_ref().skip_while(|word| *word != name);
        found.next()?;
        u64::from_str_radix(found.next()?, 16).ok()
    };
    let events = field("events")? as u32;
    let data = field("data")?;
    let inode = field("ino").unwrap_or(0);
    Some(EpollEntry { fd, events, data, inode, source: fd, process: 0 })
}

fn open(record: &Descriptor, opening: &mut Opening<'_>) -> Result<Origin> {
    let epoll =
        Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).because(|| "cannot make an epoll instance")?;
    let mut params = record.value;
    if params != 0
        && let Err(errno) = ioctl(&epoll.0, SET_PARAMS, &mut params)
    {
        let (fd, why) = (shown(record.fd), errno.desc());
        opening.warnings.push(format!("epoll descriptor {fd} polls no network device: {why}"));
    }
    Ok(Origin::Own(epoll.0))
}

/// Sets the watches of instances that are under way in sockets: nobody will have these under a number.
///
/// # Errors
/// What the kernel refuses.
pub(crate) fn watch_under_way(
    entries: &[Vec<(u32, EpollEntry)>],
    all: &[Vec<Restored>],
) -> Result<()> {
    for (process, entries) in (0..).zip(entries) {
        for (fd, entry) in entries.iter().filter(|(fd, _)| fd & UNDER_WAY != 0) {
            let source = Place { process: entry.process, fd: entry.source };
            let source = behind(all, source).filter(|it| kind(it.0) != DescriptorKind::Lost);
            let epoll = behind(all, Place { process, fd: *fd });
            let (Some((_, epoll)), Some((_, source))) = (epoll, source) else { continue };
            watch_by_another(epoll, source, entry).because(|| {
                format!("an epoll instance that is under way in a socket cannot watch {}", entry.fd)
            })?;
        }
    }
    Ok(())
}

/// Sets a watch under the number that it had, in a child: here somebody else has that.
fn watch_by_another(
    epoll: BorrowedFd<'_>,
    source: BorrowedFd<'_>,
    entry: &EpollEntry,
) -> nix::Result<()> {
    let watch = || {
        let above = FcntlArg::F_DUPFD_CLOEXEC(entry.fd.cast_signed() + 1);
        let epoll = Epoll(owned(fcntl(epoll, above)?.into())?);
        numbers::place(source.as_raw_fd(), entry.fd.cast_signed(), true);
        let watched = owned(entry.fd.into())?;
        let flags = EpollFlags::from_bits_retain(entry.events.cast_signed());
        epoll.add(watched, EpollEvent::new(flags, entry.data))
    };
    match helper(|| fork(0))? {
        None => end(watch().map_or_else(|errno| errno as i32, |()| 0)),
        Some(child) => match waitpid(child.nix(), Some(WaitPidFlag::__WALL))? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, errno) => Err(Errno::from_raw(errno)),
            _ => Err(Errno::EINTR),
        },
    }
}

/// How a watch is made that EPOLLONESHOT has disarmed: only by letting it fire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fire {
    /// The watch is armed, or cannot fire now: then an error or hang-up may be reported once more.
    No,
    /// The file is ready for something.
    Ready,
    /// So is the pipe, by a byte that has to be taken out again.
    Byte,
}

/// A watch to be set.
pub(crate) struct Watch {
    epoll: u32,
    entry: EpollEntry,
    fire: Fire,
    /// The number is another description's, which gets it back: whether that closes on exec.
    occupied: Option<bool>,
    /// What the restarter has under 0, 1 and 2 may be nothing that epoll knows (a file, /dev/null).
    may_fail: bool,
}

/// The watched descriptors of all instances that are led by process `number` of the image, whose descriptors these are.
///
/// # Errors
/// A damaged image.
pub(crate) fn entries(
    number: u32,
    records: &[Descriptor],
    content: impl Fn(u32) -> Result<Vec<u8>>,
) -> Result<Vec<(u32, EpollEntry)>> {
    let mut found = Vec::new();
    for record in records {
        if kind(record) != DescriptorKind::Epoll || !super::is_first(record, number) {
            continue;
        }
        let bytes = content(record.content)?;
        let entries = bytes.chunks_exact(size_of::<EpollEntry>());
        let entries = entries.filter_map(|r| EpollEntry::read_from_bytes(r).ok());
        found.extend(entries.map(|entry| (record.fd, entry)));
    }
    Ok(found)
}

/// The watches to be set, those first that have to fire when nothing else can.
pub(crate) fn watches(entries: &[(u32, EpollEntry)], restored: &[Restored]) -> Vec<Watch> {
    let held = entries.iter().filter(|(epoll, _)| epoll & UNDER_WAY == 0);
    let watches = held.filter_map(|(epoll, entry)| watch(*epoll, *entry, restored));
    let mut watches: Vec<Watch> = watches.collect();
    order::by_key(&mut watches, |w| ((w.fire == Fire::No).into(), 0));
    watches
}

fn watch(epoll: u32, entry: EpollEntry, restored: &[Restored]) -> Option<Watch> {
    let with = |fd: u32| restored.iter().find(|r| r.record.fd == fd);
    let source = with(entry.source)?;
    if kind(&source.record) == DescriptorKind::Lost {
        return None;
    }
    let leader = with(source.record.shared_with).unwrap_or(source);
    let file = match &leader.origin {
        Origin::Own(file) => Some(file.as_fd()),
        Origin::Standard(number) => standard(*number),
        Origin::Shared(_) | Origin::Elsewhere(_) => None,
    };
    let fire = match entry.events & !PRIVATE {
        0 => file.map_or(Fire::No, |file| fire(file, leader)),
        _ => Fire::No,
    };
    let moved = entry.source != entry.fd;
    let occupied = with(entry.fd).filter(|_| moved).map(|r| r.record.cloexec != 0);
    let may_fail = matches!(leader.origin, Origin::Standard(_));
    Some(Watch { epoll, entry, fire, occupied, may_fail })
}

const ALL: PollFlags = PollFlags::POLLIN
    .union(PollFlags::POLLOUT)
    .union(PollFlags::POLLPRI)
    .union(PollFlags::from_bits_retain(libc::POLLRDHUP));

fn is_ready(file: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(file, ALL)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|n| n > 0)
}

fn fire(file: BorrowedFd<'_>, leader: &Restored) -> Fire {
    if is_ready(file) {
        return Fire::Ready;
    }
    let Origin::Own(own) = &leader.origin else { return Fire::No };
    let reads = access(leader.record.flags) == libc::O_RDONLY;
    if kind(&leader.record) != DescriptorKind::Pipe || !reads {
        return Fire::No;
    }
    let writer = reopened(own, (libc::O_WRONLY | libc::O_NONBLOCK) as u32);
    let written = writer.is_ok_and(|writer| nix::unistd::write(&writer, b"!").is_ok());
    if written { Fire::Byte } else { Fire::No }
}

/// Bytes of the plan that one watch takes at most.
pub(crate) const ROOM: u64 = 1024;

/// Orders that set the watches; nobody has the number `spare`.
pub(crate) fn restore_watches(
    watches: &[Watch],
    spare: u32,
    arena: &mut Arena,
    orders: &mut Orders,
) -> Result<()> {
    for Watch { epoll, entry, fire, occupied, may_fail } in watches {
        let [epoll, number, source, spare] = [*epoll, entry.fd, entry.source, spare].map(u64::from);
        let moved = number != source;
        let dup = |orders: &mut Orders, from: u64, to: u64, cloexec: bool| {
            let flags = if cloexec { libc::O_CLOEXEC as u64 } else { 0 };
            orders.call(Step::Watch, libc::SYS_dup3, &[from, to, flags]);
        };
        if occupied.is_some() {
            dup(orders, number, spare, true);
        }
        if moved {
            dup(orders, source, number, true);
        }
        let events = if *fire == Fire::No { 0 } else { ALL.bits() as u32 };
        // struct epoll_event is packed on x86-64.
        let mut event = Vec::from((entry.events | events).to_le_bytes());
        event.extend_from_slice(&entry.data.to_le_bytes());
        let at = arena.bytes(&event)?;
        let add = libc::EPOLL_CTL_ADD.cast_unsigned().into();
        let args = [epoll, add, number, at];
        match may_fail {
            true => orders.try_call(Step::Watch, libc::SYS_epoll_ctl, &args),
            false => orders.call(Step::Watch, libc::SYS_epoll_ctl, &args),
        }
        if *fire != Fire::No {
            let room = arena.room(16, 64)?;
            orders.try_call(Step::Watch, libc::SYS_epoll_wait, &[epoll, room, 1, 0]);
            if *fire == Fire::Byte {
                orders.try_call(Step::Watch, libc::SYS_read, &[number, room, 1]);
            }
        }
        if let Some(cloexec) = occupied {
            dup(orders, spare, number, *cloexec);
            orders.call(Step::Watch, libc::SYS_close, &[spare]);
        } else if moved {
            orders.call(Step::Watch, libc::SYS_close, &[number]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_fdinfo() {
        let line = "       5 events:       1d data: ffffffffffffff00 pos:0 ino:61af sdev:7";
        let wanted = EpollEntry {
            fd: 5,
            events: 0x1d,
            data: 0xffff_ffff_ffff_ff00,
            inode: 0x61af,
            source: 5,
            process: 0,
        };
        assert_eq!(entry(line), Some(wanted));
        assert_eq!(entry("nonsense"), None);
    }
}
