// SPDX-License-Identifier: LGPL-2.1-only
//! Devices, opened by their path.

use super::{Kind, Look, Opening, Origin, Saving, file_type, names, only_names, terminal};
use crate::error::Result;
use crate::proc::fds::Fd;
use ckpt_abi::image::Descriptor;
use nix::libc;
use nix::sys::stat::{major, minor};
use std::ffi::OsStr;

pub(super) const KIND: Kind = Kind { recognise, save, open };

/// Whether the driver of a graphics processor is behind a path, by which programs compute: what is in its memory and
/// in its queues nobody else can read.
pub(crate) fn is_gpu(path: &OsStr) -> bool {
    let path = path.as_encoded_bytes();
    path.starts_with(b"/dev/nvidia") || path == b"/dev/kfd"
}

fn recognise(fd: &Fd, look: &Look<'_>) -> bool {
    let device = matches!(file_type(fd.mode), libc::S_IFCHR | libc::S_IFBLK);
    device && !terminal::is_pseudo(fd.rdev) && names::locate(fd, look).is_some()
}

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    saving.path = names::locate(fd, look).map_or_else(|| fd.target.clone(), Into::into);
    if file_type(fd.mode) == libc::S_IFCHR && !is_stateless(fd) {
        let path = saving.path.display();
        saving.say(format!("what the device {path} knows of the program: it is opened anew"));
    }
    Ok(())
}

/// Whether every opening of the device is like any other: /dev/null and its kin (major 1), consoles and
/// serial lines (4, 5), and what is only named.
fn is_stateless(fd: &Fd) -> bool {
    only_names(fd.flags)
        || matches!(major(fd.rdev), 1 | 4)
        || (major(fd.rdev), minor(fd.rdev)) == (5, 1)
}

fn open(record: &Descriptor, opening: &mut Opening<'_>) -> Result<Origin> {
    let path = opening.sources.path(record);
    let file = opening.by_path(record, &path)?;
    if file_type(record.mode) == libc::S_IFBLK {
        super::open::seek(&file, record, &path)?;
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
