// SPDX-License-Identifier: LGPL-2.1-only
//! What cannot be opened again. Its number stays taken by a descriptor that refuses everything with EBADF
//! (O_PATH), so that the next file which the program opens does not get it, and with it what the program
//! still writes to the old one.

use super::{Kind, Look, Loss, Opening, Origin, Saving, file_type, terminal};
use crate::error::{Because, Result};
use crate::proc::{Pid, Process, fds::Fd, unix};
use ckpt_abi::image::Descriptor;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::Mode;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

pub(super) const KIND: Kind = Kind { recognise: |_, _| true, save, open };

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    lose(fd, look, saving, why(fd));
    Ok(())
}

/// Gives up a descriptor.
pub(super) fn lose(fd: &Fd, look: &Look<'_>, saving: &mut Saving, why: &str) {
    saving.lose(why);
    if is_inherited(fd, look) {
        for loss in &mut saving.losses {
            if let Loss::Descriptor(what) = loss {
                *loss = Loss::Inherited(std::mem::take(what));
            }
        }
    }
}

/// Whether the program has this only because whoever started it has it, under the same number: a shell's
/// own pipe, which nobody misses. The descendants have it from there, too.
pub(super) fn is_inherited(fd: &Fd, look: &Look<'_>) -> bool {
    if fd.cloexec || fd.number <= 2 {
        return false;
    }
    let root = look.tables.root().unwrap_or(look.process.pid());
    let parent = Process::glimpse(root).and_then(|root| root.main_stat()).map(|stat| stat.ppid);
    let parent = parent.and_then(Process::glimpse).ok().filter(|it| it.pid() > Pid::INIT);
    let same = |m: std::fs::Metadata| (m.dev(), m.ino()) == (fd.device, fd.inode);
    // The path holds only as long as the parent is open.
    let place = parent.as_ref().map(|parent| parent.fd(fd.number));
    place.is_some_and(|place| std::fs::metadata(place).is_ok_and(same))
}

/// What it is, for people.
fn why(fd: &Fd) -> &'static str {
    match file_type(fd.mode) {
        libc::S_IFSOCK if unix::all().is_none() => {
            "a socket of which this kernel does not tell what it is connected to: modprobe unix_diag"
        }
        libc::S_IFSOCK => "a socket of a kind that cannot be saved",
        libc::S_IFIFO => "a pipe to another program",
        libc::S_IFCHR if terminal::is_pseudo(fd.rdev) => "a terminal that is not the program's own",
        libc::S_IFREG | libc::S_IFDIR | libc::S_IFCHR | libc::S_IFBLK => {
            "its path leads elsewhere by now"
        }
        _ => "an object of the kernel",
    }
}

fn open(_: &Descriptor, _: &mut Opening<'_>) -> Result<Origin> {
    stand_in().map(Origin::Own)
}

/// A descriptor that refuses everything.
pub(super) fn stand_in() -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    nix::fcntl::open("/dev/null", flags, Mode::empty()).because(|| "cannot open /dev/null")
}
