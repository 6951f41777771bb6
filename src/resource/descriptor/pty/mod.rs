// SPDX-License-Identifier: LGPL-2.1-only
//! Pseudo-terminals (pty(7)) both of whose ends are in the checkpoint, as those of script(1), tmux(1) and expect(1):
//! their settings, and what is under way in them. A restart takes the number that each had, if nobody has that by then.

mod queue;
pub(crate) mod screen;
mod settings;
mod survey;

use super::pipe::{framed, unframed};
use super::{Content, Kind, Look, Opening, Origin, Restored, Saving, kind};
use crate::error::{Because, Error, Result};
use crate::order;
use crate::proc::fds::Fd;
use ckpt_abi::image::{Descriptor, DescriptorKind, Terminal, pty_end, terminal_flag};
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::{Mode, fchmod, fstat, major, minor};
use nix::unistd::{Gid, Uid};
use queue::Waiting;
use settings::{EXCLUSIVE, LOCK, PACKETS, peer};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use zerocopy::{FromBytes, IntoBytes};

pub(crate) use settings::{control, set_foreground, set_window, window};
pub(super) use settings::{set_termios, termios};
pub(crate) use survey::Ptys;

pub(super) const KIND: Kind = Kind { recognise, save, open };

/// The number N of /dev/pts/N, of a device number.
pub(crate) fn number_of(device: u64) -> Option<u32> {
    (major(device) == 136).then_some(minor(device) as u32)
}

/// Whether the processes of the checkpoint hold both ends of a pseudo-terminal.
pub(crate) fn has_both_ends(fd: &Fd, look: &Look<'_>) -> bool {
    look.tables.ptys().end(look.process.pid(), fd.number).is_some()
}

fn recognise(fd: &Fd, look: &Look<'_>) -> bool {
    has_both_ends(fd, look)
}

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    let of = (look.process.pid(), fd.number);
    let ptys = look.tables.ptys();
    let Some((number, end)) = ptys.end(of.0, of.1) else { return Ok(()) };
    (saving.record.value, saving.record.extra) = (number.into(), end);
    let Some(pty) = ptys.all.get(&number).filter(|pty| end != pty_end::HUNG_UP && pty.first == of)
    else {
        return Ok(());
    };
    if pty.strange {
        saving.say(format!("the line discipline of /dev/pts/{number}, and what waits in it"));
    }
    if pty.waiting.unseen {
        saving.say(format!(
            "what is under way in /dev/pts/{number}: it could not be looked at without harm to the program"
        ));
    }
    let Waiting { typed, later, shown, .. } = &pty.waiting;
    let pieces = [pty.record.as_bytes().to_vec(), typed.clone(), later.clone(), shown.clone()];
    saving.record.content = fd.number;
    saving.content = Some(Content { index: fd.number, bytes: framed(&pieces) });
    Ok(())
}

/// A pseudo-terminal that a restart has made.
pub(crate) struct Pair {
    master: OwnedFd,
    /// Keeps the slave open until all have it that had.
    slave: Option<OwnedFd>,
    record: Terminal,
}

/// Those of a restart by the numbers that they had.
pub(crate) type Made = HashMap<u32, Pair>;

/// What a restart has opened goes on as it was: nobody else may open it, if that was so.
pub(crate) fn finish(made: &Made) {
    for Pair { master, slave, record } in made.values() {
        let is = |flag: u32| record.flags & flag != 0;
        let put = |word: settings::Word, end: Option<&OwnedFd>, flag: u32| {
            let _ = end.filter(|_| is(flag)).map(|end| word.put(end, true));
        };
        put(EXCLUSIVE, slave.as_ref(), terminal_flag::EXCLUSIVE_SLAVE);
        put(EXCLUSIVE, Some(master), terminal_flag::EXCLUSIVE_MASTER);
        put(LOCK, Some(master), terminal_flag::LOCKED);
    }
}

fn open(record: &Descriptor, opening: &mut Opening<'_>) -> Result<Origin> {
    let flags = OFlag::from_bits_retain(record.flags.cast_signed())
        & (OFlag::O_ACCMODE | OFlag::O_NONBLOCK);
    let slave = |master: &OwnedFd| peer(master, flags).because(|| "cannot open a pseudo-terminal");
    if record.extra == pty_end::HUNG_UP {
        let master = new()?;
        return slave(&master).map(Origin::Own);
    }
    let number = record.value as u32;
    if !opening.ptys.contains_key(&number) {
        let content = opening.content(record)?;
        let pair = make(&content, &mut opening.warnings)?;
        opening.ptys.insert(number, pair);
    }
    let Some(pair) = opening.ptys.get(&number) else {
        return Err(Error::new("no pseudo-terminal"));
    };
    if record.extra == pty_end::MASTER {
        return pair.master.try_clone().map(Origin::Own).because(|| "cannot duplicate a terminal");
    }
    let opened = slave(&pair.master)?;
    let mode = |mode: u32| mode & 0o7777;
    // A slave that was opened as /dev/tty has the mode of that.
    if number_of(record.rdev).is_some()
        && fstat(&opened).is_ok_and(|stat| mode(stat.st_mode) != mode(record.mode))
    {
        let _ = fchmod(&opened, Mode::from_bits_truncate(mode(record.mode)));
    }
    Ok(Origin::Own(opened))
}

/// A new pseudo-terminal, to which a slave can be opened.
fn new() -> Result<OwnedFd> {
    let what = || "cannot make a pseudo-terminal (/dev/ptmx)";
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = nix::fcntl::open("/dev/ptmx", flags, Mode::empty()).because(what)?;
    LOCK.put(&master, false).because(what)?;
    Ok(master)
}

/// Master and slave of a new one with a window of that size ([`window`]).
///
/// # Errors
/// There can be none.
pub(crate) fn pair(size: [u16; 4]) -> Result<(OwnedFd, OwnedFd)> {
    let master = new()?;
    let slave = peer(&master, OFlag::O_RDWR).because(|| "cannot open a pseudo-terminal")?;
    let _ = set_window(&master, size);
    Ok((master, slave))
}

/// The one of this number, or of any: the kernel gives the lowest that is free.
fn numbered(wanted: u32) -> Result<(OwnedFd, u32)> {
    const PATIENCE: usize = 256;
    let mut aside = Vec::new();
    loop {
        let master = new()?;
        let number = settings::number(&master).unwrap_or(wanted);
        if number >= wanted || aside.len() == PATIENCE {
            return Ok((master, number));
        }
        aside.push(master);
    }
}

fn make(content: &[u8], warnings: &mut Vec<String>) -> Result<Pair> {
    let damaged = || Error::new("a damaged pseudo-terminal");
    let pieces = unframed(content).ok_or_else(damaged)?;
    let [record, typed, later, shown] = pieces.as_slice() else { return Err(damaged()) };
    let (record, _) = Terminal::read_from_prefix(record).map_err(|_| damaged())?;
    let is = |flag: u32| record.flags & flag != 0;
    let (master, number) = numbered(record.number)?;
    if number != record.number {
        let before = record.number;
        warnings.push(format!(
            "the terminal /dev/pts/{before} of the program is /dev/pts/{number}, for somebody else has that: what remembers its name (tty, who) is wrong"
        ));
    }
    let _ = set_window(&master, record.window);
    if is(terminal_flag::UNOPENED) {
        let _ = set_termios(&master, &record.termios);
        return Ok(Pair { master, slave: None, record });
    }
    let slave = peer(&master, OFlag::O_RDWR | OFlag::O_NONBLOCK);
    let slave = slave.because(|| "cannot open a pseudo-terminal")?;
    if record.mode != 0 && own(&slave, &record).is_err() {
        warnings
            .push(format!("the terminal /dev/pts/{number} has another owner or mode than it had"));
    }
    let [typed, later, shown] = [typed, later, shown].map(|piece| piece.to_vec());
    let (lines, stopped) = (record.lines, is(terminal_flag::STOPPED));
    let waiting = Waiting { typed, later, shown, lines, stopped, unseen: false };
    let lost = waiting.put(&master, &slave, &record.termios, false, stopped);
    if lost > 0 {
        warnings
            .push(format!("{lost} bytes that were in the terminal /dev/pts/{number} find no room"));
    }
    let _ = PACKETS.put(&master, is(terminal_flag::PACKETS));
    Ok(Pair { master, slave: Some(slave), record })
}

/// What a user namespace shows of ids that it does not map (user_namespaces(7)).
const UNMAPPED: u32 = 65534;

/// Gives a slave the owner and the mode that it had.
fn own(slave: &OwnedFd, record: &Terminal) -> nix::Result<()> {
    let is = fstat(slave)?;
    let other = |is: u32, was: u32| (was != is && was != UNMAPPED).then_some(was);
    let (user, group) = (other(is.st_uid, record.user), other(is.st_gid, record.group));
    if user.or(group).is_some() {
        nix::unistd::fchown(slave, user.map(Uid::from_raw), group.map(Gid::from_raw))?;
    }
    match is.st_mode == record.mode {
        true => Ok(()),
        false => fchmod(slave, Mode::from_bits_truncate(record.mode & 0o7777)),
    }
}

/// A slave of the pseudo-terminal that had this number, to become a controlling terminal; called when all are opened.
///
/// # Errors
/// It cannot be opened.
pub(crate) fn slave_of(all: &[Vec<Restored>], number: u32) -> Result<Option<OwnedFd>> {
    let own = all.iter().flatten().filter_map(|restored| match &restored.origin {
        Origin::Own(file) => Some((&restored.record, file)),
        _ => None,
    });
    let of_it = |record: &Descriptor| {
        kind(record) == DescriptorKind::Pty && record.value == u64::from(number)
    };
    let mut ends: Vec<_> = own.filter(|(record, _)| of_it(record)).collect();
    let reads = |record: &Descriptor| super::access(record.flags) != libc::O_WRONLY;
    ends.retain(|(record, _)| record.extra == pty_end::MASTER || reads(record));
    order::by_key(&mut ends, |(record, _)| ((record.extra == pty_end::MASTER).into(), 0));
    let slave = |(record, file): &(&Descriptor, &OwnedFd)| match record.extra {
        pty_end::MASTER => peer(file, OFlag::O_RDWR).because(|| "cannot open a pseudo-terminal"),
        _ => file.try_clone().because(|| "cannot duplicate a terminal"),
    };
    ends.first().map(slave).transpose()
}
