// SPDX-License-Identifier: LGPL-2.1-only
//! Devices, opened by their path. Nodes that were removed are made anew and removed again: those of devices by root, FIFOs,
//! sockets and symbolic links where they are only named (O_PATH).

use super::open::{by_path, place};
use super::spot::Spot;
use super::{Content, Kind, Look, Opening, Origin, Saving};
use super::{access, file_type, lost, only_names, pty, terminal};
use crate::error::{Because, Result};
use crate::proc::fds::Fd;
use ckpt_abi::image::{Descriptor, Termios};
use nix::fcntl::readlinkat;
use nix::libc;
use nix::sys::stat::{major, minor};
use nix::unistd::{UnlinkatFlags, geteuid, mkdtemp};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use zerocopy::{FromBytes, IntoBytes};

pub(super) const KIND: Kind = Kind { recognise, save, open };

/// Whether the driver of a graphics processor is behind a path, by which programs compute: what is in its memory and
/// in its queues nobody else can read.
pub(crate) fn is_gpu(path: &OsStr) -> bool {
    let path = path.as_encoded_bytes();
    path.starts_with(b"/dev/nvidia") || path == b"/dev/kfd"
}

/// [`Descriptor::extra`] of one that was removed.
const REMOVED: u32 = 1;
/// And of a terminal with its settings, as a serial line.
const SET: u32 = 2;

/// The major number of /dev/null and its kin, none of which is a terminal.
const MEMORY: u64 = 1;

fn is_device(mode: u32) -> bool {
    matches!(file_type(mode), libc::S_IFCHR | libc::S_IFBLK)
}

fn recognise(fd: &Fd, look: &Look<'_>) -> bool {
    let device = is_device(fd.mode) && !terminal::is_pseudo(fd.rdev);
    let node = matches!(file_type(fd.mode), libc::S_IFLNK | libc::S_IFIFO | libc::S_IFSOCK);
    let removed = fd.nlink == 0
        && fd.target.as_encoded_bytes().starts_with(b"/")
        && (device && geteuid().is_root() || node && only_names(fd.flags));
    device && look.path(fd).is_some() || removed
}

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    match look.path(fd) {
        Some(path) => saving.path = path.into(),
        None => saving.record.extra = REMOVED,
    }
    let ours = || look.ours(fd).ok();
    let mut content = None;
    if file_type(fd.mode) == libc::S_IFLNK {
        content = ours().and_then(|link| readlinkat(link, "").ok()).map(OsString::into_vec);
        if content.is_none() {
            saving.lose("a symbolic link that cannot be looked at");
            return Ok(());
        }
    } else if file_type(fd.mode) == libc::S_IFCHR
        && saving.record.extra != REMOVED
        && major(fd.rdev) != MEMORY
        && let Some(settings) = ours().and_then(|file| pty::termios(file).ok())
    {
        saving.record.extra = SET;
        if terminal::of(look.process) == fd.rdev {
            let path = saving.path.display();
            saving.say(format!("what the device {path} is: its controlling terminal"));
        }
        content = Some(settings.as_bytes().to_vec());
    }
    if let Some(bytes) = content {
        saving.record.content = fd.number;
        saving.content = Some(Content { index: fd.number, bytes });
    }
    if file_type(fd.mode) == libc::S_IFCHR && !is_stateless(fd) {
        let path = saving.path.display();
        saving.say(format!("what the device {path} knows of the program: it is opened anew"));
    }
    Ok(())
}

/// Whether every opening of the device is like any other: /dev/null and its kin (major 1; but a reader of /dev/kmsg has a
/// place in it), consoles and serial lines (4, 5), and what is only named.
fn is_stateless(fd: &Fd) -> bool {
    only_names(fd.flags)
        || match (major(fd.rdev), minor(fd.rdev)) {
            (MEMORY, 11) => access(fd.flags) == libc::O_WRONLY,
            device => matches!(device, (MEMORY | 4, _) | (5, 1)),
        }
}

fn open(record: &Descriptor, opening: &mut Opening<'_>) -> Result<Origin> {
    let path = opening.sources.path(record);
    if needs_path(record) {
        return named(record, &path, opening);
    }
    let leads = match file_type(record.mode) {
        libc::S_IFLNK => opening.content(record)?,
        _ => Vec::new(),
    };
    let made = match opening.sources.is_rehearsal() {
        true => lost::stand_in(),
        false => made(record, &OsString::from_vec(leads)),
    };
    let file = made.or_else(|why| {
        let path = path.display();
        opening.warnings.push(format!("the removed {path} cannot be had again: {why}"));
        lost::stand_in()
    })?;
    Ok(Origin::Own(file))
}

/// Whether it has a name by which it is opened.
pub(super) fn needs_path(record: &Descriptor) -> bool {
    record.extra != REMOVED
}

/// Makes a node, opens it and removes it again.
pub(super) fn made(record: &Descriptor, leads: &OsStr) -> Result<OwnedFd> {
    // Others than root may make none of devices, and many file systems show none (nodev).
    let places: &[&str] = match is_device(record.mode) {
        true => &["/dev/ckpt-XXXXXX", "/tmp/ckpt-XXXXXX"],
        false => &["/tmp/ckpt-XXXXXX"],
    };
    let why = || "no directory for it";
    let folder = places.iter().find_map(|place| mkdtemp(*place).ok());
    let folder = folder.ok_or(nix::errno::Errno::EACCES).because(why)?;
    let made = Spot::of(&folder.join("node")).because(why).and_then(|spot| {
        let file_type = file_type(record.mode);
        spot.make_node(file_type, record.rdev, leads).because(|| "it cannot be made")?;
        let opened = spot.ours(file_type).because(|| "it is another").and_then(|node| {
            if file_type != libc::S_IFLNK {
                let mode = fs::Permissions::from_mode(record.mode & 0o7777);
                let _ = fs::set_permissions(place(&node), mode);
            }
            if only_names(record.flags) { Ok(node) } else { by_path(record, &place(&node)) }
        });
        let _ = spot.remove(UnlinkatFlags::NoRemoveDir);
        opened
    });
    let _ = fs::remove_dir(&folder);
    made
}

fn named(record: &Descriptor, path: &Path, opening: &Opening<'_>) -> Result<Origin> {
    let file = opening.by_path(record, path)?;
    if record.extra == SET {
        let wanted = opening.content(record)?;
        let other = pty::termios(&file).is_ok_and(|now| now.as_bytes() != wanted);
        if other && let Ok((settings, _)) = Termios::read_from_prefix(&wanted) {
            let _ = pty::set_termios(&file, &settings);
        }
    }
    if file_type(record.mode) == libc::S_IFBLK {
        super::open::seek(&file, record, path)?;
    }
    Ok(Origin::Own(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_of_graphics_processors() {
        let all = ["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/kfd"];
        assert!(all.iter().all(|path| is_gpu(OsStr::new(path))));
        assert!(!is_gpu(OsStr::new("/dev/kfd2")) && !is_gpu(OsStr::new("/home/dev/nvidia0")));
    }
}
