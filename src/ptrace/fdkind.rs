// SPDX-License-Identifier: LGPL-2.1-only
//! What a call on a descriptor may wait for.

use super::borrowed;
use crate::proc::{Pid, Process};
use nix::libc;
use nix::sys::stat::{SFlag, major, minor};
use nix::sys::termios::{LocalFlags, SpecialCharacterIndices, tcgetattr};

/// Kinds of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Is {
    /// A pipe or FIFO.
    Pipe,
    /// A socket of any kind.
    Socket,
    /// A terminal.
    Terminal,
    /// /dev/zero, /dev/full, /dev/random and /dev/urandom: always ready, without an end.
    Endless,
    /// A file.
    Regular,
}

/// A descriptor, looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// What it is.
    pub is: Is,
    /// O_NONBLOCK.
    pub nonblocking: bool,
}

/// Looks at a descriptor of a process; None for kinds that matter to nobody here.
pub(crate) fn look(pid: Pid, fd: i32) -> Option<Found> {
    const MEMORY: u64 = 1;
    const ENDLESS: [u64; 4] = [5, 7, 8, 9];
    let found = Process::glimpse(pid).ok()?.descriptor(u32::try_from(fd).ok()?).ok()??;
    let device = (major(found.rdev), minor(found.rdev));
    let is = match SFlag::from_bits_truncate(found.mode) & SFlag::S_IFMT {
        SFlag::S_IFIFO => Is::Pipe,
        SFlag::S_IFSOCK => Is::Socket,
        SFlag::S_IFREG => Is::Regular,
        SFlag::S_IFCHR if device.0 == MEMORY && ENDLESS.contains(&device.1) => Is::Endless,
        SFlag::S_IFCHR if is_terminal(pid, fd) => Is::Terminal,
        _ => return None,
    };
    Some(Found { is, nonblocking: found.flags & libc::O_NONBLOCK as u32 != 0 })
}

fn is_terminal(pid: Pid, fd: i32) -> bool {
    borrowed::take(pid, fd).is_ok_and(|fd| tcgetattr(&fd).is_ok())
}

/// How many bytes a read(2) of a terminal waits for that is not in canonical mode and has no timer (VMIN, termios(3)).
pub(crate) fn least_of_terminal(pid: Pid, fd: i32) -> Option<u64> {
    let settings = tcgetattr(&borrowed::take(pid, fd).ok()?).ok()?;
    let [least, timer] = [SpecialCharacterIndices::VMIN, SpecialCharacterIndices::VTIME]
        .map(|i| settings.control_chars[i as usize]);
    let raw = !settings.local_flags.contains(LocalFlags::ICANON) && timer == 0;
    raw.then_some(least.into())
}
