// SPDX-License-Identifier: LGPL-2.1-only
//! The controlling terminal under another number than 0, 1 and 2: that of the restarter, whatever its path.

use super::{Kind, Look, Opening, Origin, Saving, Tables, file_type, open, standard};
use crate::error::Result;
use crate::proc::{Process, fds::Fd, stat::Stat};
use ckpt_abi::image::Descriptor;
use nix::libc;
use nix::sys::stat::{major, makedev, minor};
use std::path::Path;

pub(super) const KIND: Kind = Kind { recognise, save, open: again };

/// The device number of a process's controlling terminal, or 0.
pub(crate) fn of(process: &Process) -> u64 {
    process.stat(process.main_thread()).map_or(0, |stat| decoded(stat.tty_nr.cast_unsigned()))
}

/// A device number as the kernel's new_encode_dev() has it: eight bits of the minor number, the major, and the rest of
/// the minor; or 0.
pub(crate) fn decoded(number: u32) -> u64 {
    match u64::from(number) {
        0 => 0,
        n => makedev((n >> 8) & 0xfff, (n & 0xff) | ((n >> 12) & 0xfff00)),
    }
}

/// Consoles and serial lines (major 4), /dev/tty (5, 0), and the pseudo-terminals of devpts (136 to 143).
pub(crate) fn is_terminal(device: u64) -> bool {
    matches!(major(device), 4 | 136..=143) || is_own(device)
}

/// The ends of pseudo-terminals: /dev/ptmx (5, 2), whose opening makes another, and /dev/pts/N, which may be
/// somebody else's by the time of a restart.
pub(crate) fn is_pseudo(device: u64) -> bool {
    matches!(major(device), 136..=143) || (major(device), minor(device)) == (5, 2)
}

/// /dev/tty: whichever is the process's own.
pub(super) fn is_own(device: u64) -> bool {
    device == makedev(5, 0)
}

/// The device number of the controlling terminal of a process, or 0; 0 also where that is a line or a console that a leader of a session in the
/// checkpoint has opened itself, as daemons do that are only about to talk to a device.
pub(crate) fn given(stat: &Stat, tables: &Tables) -> u64 {
    let device = decoded(stat.tty_nr.cast_unsigned());
    let of_start = |fd: &Fd| fd.number < 3 || tables.at_start.contains(&standard::at_start(fd));
    let was_there = || tables.everywhere().any(|(_, fd)| fd.rdev == device && of_start(fd));
    let taken = !is_pseudo(device)
        && tables.of.iter().any(|table| table.pid == stat.session)
        && !was_there();
    if taken { 0 } else { device }
}

fn recognise(fd: &Fd, look: &Look<'_>) -> bool {
    let own = is_own(fd.rdev) || fd.rdev != 0 && fd.rdev == look.terminal;
    file_type(fd.mode) == libc::S_IFCHR && own
}

fn save(_: &Fd, _: &Look<'_>, saving: &mut Saving) -> Result<()> {
    saving.path = "/dev/tty".into();
    Ok(())
}

/// Without a controlling terminal, one of the restarter's standard streams that is a terminal serves.
fn again(record: &Descriptor, opening: &mut Opening<'_>) -> Result<Origin> {
    if let Ok(file) = open::by_path(record, Path::new("/dev/tty")) {
        return Ok(Origin::Own(file));
    }
    let standard = [0, 1, 2]
        .into_iter()
        .find(|fd| open::standard(*fd).is_some_and(|fd| nix::unistd::isatty(fd).unwrap_or(false)));
    match standard {
        Some(number) => Ok(Origin::Standard(number)),
        None => {
            let fd = record.fd;
            opening.warnings.push(format!(
                "there is no terminal here for the program's descriptor {fd}: it refuses everything"
            ));
            (super::lost::KIND.open)(record, opening)
        }
    }
}
