// SPDX-License-Identifier: LGPL-2.1-only
//! Descriptors that are under way in sockets (SCM_RIGHTS, unix(7)): a look at what waits to be read gives us one of each.
//! They count as the process's whose socket it is, under numbers of their own ([`UNDER_WAY`]), and are saved like all
//! others; a restart opens them, sends them where they were, and gives them to nobody.

use super::queue::Waiting;
use super::{pairs, waiting};
use crate::error::Result;
use crate::proc::fds::{self, Fd, UNDER_WAY};
use crate::proc::unix::{self, LISTENS, Unix};
use crate::ptrace::borrowed;
use crate::resource::descriptor::file_type;
use crate::resource::descriptor::{standard, tables::Table};
use ckpt_abi::image::DescriptorKind;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsRawFd, OwnedFd};

/// What waits in the sockets of the processes, until it is saved.
#[derive(Default)]
pub(crate) struct Flight {
    waiting: RefCell<HashMap<u64, Waiting>>,
    held: Vec<OwnedFd>,
}

impl Flight {
    /// Looks into all unix sockets both of whose ends are the processes', also those that are found on the way, and adds
    /// what is under way to their tables; with what the kernel tells of sockets, if anybody has one.
    ///
    /// # Errors
    /// The kernel refuses a look.
    pub(crate) fn find(
        of: &mut [Table],
        at_start: &[[u64; 3]; 3],
    ) -> Result<(Self, Option<HashMap<u64, Unix>>)> {
        let is_socket = |fd: &Fd| {
            file_type(fd.mode) == libc::S_IFSOCK && !at_start.contains(&standard::at_start(fd))
        };
        let mut inside = HashSet::new();
        let mut left = Vec::new();
        for (process, table) in of.iter().enumerate() {
            let mut news = |fd: &&Fd| is_socket(fd) && inside.insert(fd.inode);
            let sockets = table.fds.iter().filter(|fd| news(fd));
            left.extend(sockets.map(|fd| (process, fd.number, fd.inode)));
        }
        let mut flight = Self::default();
        if left.is_empty() {
            return Ok((flight, None));
        }
        let sockets = unix::all().unwrap_or_else(|| pairs::all(of));
        if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        }
        loop {
            let is_ours = |(_, _, inode): &(usize, u32, u64)| {
                let peer = sockets.get(inode).and_then(|unix| unix.peer);
                peer.is_none_or(|peer| inside.contains(&peer) || !sockets.contains_key(&peer))
            };
            let (ours, others): (Vec<_>, Vec<_>) = left.into_iter().partition(is_ours);
            if ours.is_empty() {
                return Ok((flight, Some(sockets)));
            }
            left = others;
            for (process, number, inode) in ours {
                let Some(unix) = sockets.get(&inode).filter(|unix| unix.state != LISTENS) else {
                    continue;
                };
                // Why it cannot be had is said where it is saved.
                let Ok(socket) = borrowed::take(of[process].pid, number.cast_signed()) else {
                    continue;
                };
                let mut found = waiting(&socket, unix, false)?;
                for held in std::mem::take(&mut found.held) {
                    if let Some(fd) = fds::under_way(held.as_raw_fd().cast_unsigned())? {
                        if is_socket(&fd) && inside.insert(fd.inode) {
                            left.push((process, fd.number, fd.inode));
                        }
                        of[process].fds.push(fd);
                    }
                    flight.held.push(held);
                }
                flight.waiting.get_mut().insert(inode, found);
            }
        }
    }

    /// What waits in a socket that was looked into.
    pub(super) fn take(&self, inode: u64) -> Option<Waiting> {
        self.waiting.borrow_mut().remove(&inode)
    }

    /// Closes what is held: before whoever else has it goes on.
    pub(crate) fn end(&mut self) {
        self.held.clear();
    }
}

/// What stands in the way of saving a descriptor that is under way: some kinds are what they are by the process that has
/// them. One that a process has, too, is opened for that.
pub(crate) fn obstacle(fd: &Fd, kind: DescriptorKind, leads: bool) -> Option<String> {
    use DescriptorKind::{Inotify, Namespace, Proc, Process, Queue};
    let is_bound = match kind {
        Inotify => leads,
        Process | Namespace | Proc | Queue => true,
        _ => false,
    };
    (fd.number & UNDER_WAY != 0 && is_bound).then(|| {
        format!(
            "descriptors (SCM_RIGHTS) are under way in a socket that cannot be saved before they are received: {}",
            fd.target.display()
        )
    })
}
