// SPDX-License-Identifier: LGPL-2.1-only
//! What waits in unix sockets is sent again: by whom it was (SCM_CREDENTIALS), with what was under way with it (SCM_RIGHTS); then
//! what had ended ends again.

use super::item::Item;
use super::make::{Deputy, FLAGS, Make, act};
use super::queue::Message;
use crate::error::{Because, Error, Result};
use crate::proc::fds::UNDER_WAY;
use crate::resource::descriptor::open::behind;
use crate::resource::descriptor::{Place, Restored, numbers};
use ckpt_abi::image::socket_flag;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessage, Shutdown, SockType, UnixAddr, UnixCredentials};
use nix::sys::socket::{send, sendmsg, shutdown};
use nix::unistd::{getgid, getpid, getuid};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};

impl Make {
    /// Sends what waits to be read, through the other end or one of the sender's name.
    pub(super) fn fill(
        &self,
        all: &[Vec<Restored>],
        deputy: Option<Deputy<'_>>,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        for (inode, item) in &self.items {
            let other = self.partner(*inode).and_then(|partner| self.ends.get(&partner));
            let other = other.or_else(|| self.ghosts.get(inode));
            for message in &item.messages {
                let strange = item.is(socket_flag::OUTSIDE | socket_flag::CONNECTS);
                let rights = match rights(item, message, all) {
                    Err(error) if strange => {
                        warnings.push(format!("in {}, {error}", item.called()));
                        Vec::new()
                    }
                    found => found?,
                };
                let sent = act(deputy, message.sender, || match other {
                    Some(other) => send_all(other, item, message, &rights),
                    None => self.send_to(item, message, &rights),
                });
                sent.because(|| format!("cannot bring back what waits in {}", item.called()))?;
            }
        }
        Ok(())
    }

    /// Ends what had ended.
    pub(super) fn shut(&self) -> Result<()> {
        for (inode, item) in &self.items {
            let Some(end) = self.ends.get(inode) else { continue };
            if item.is(socket_flag::RESET) {
                let _ = send(end.as_raw_fd(), b"!", FLAGS);
            }
            let how = match item.socket.shutdown {
                1 => Shutdown::Read,
                2 => Shutdown::Write,
                3 => Shutdown::Both,
                _ => continue,
            };
            match shutdown(end.as_raw_fd(), how) {
                // A socket that was never connected.
                Ok(()) | Err(Errno::ENOTCONN) => {}
                Err(e) => return Err(e).because(|| "cannot shut a socket down"),
            }
        }
        Ok(())
    }

    fn send_to(&self, item: &Item, message: &Message, rights: &[i32]) -> nix::Result<()> {
        let from = |sender: &Item| sender.has_datagrams() && sender.name == message.from;
        let mut named = self.items.iter().filter(|(_, it)| !message.from.is_empty() && from(it));
        let sender = named.find_map(|(inode, _)| self.ends.get(inode));
        let own = item.make().map_err(|e| Errno::from_raw(e.errno()))?;
        let sender = sender.unwrap_or(&own);
        item.by_place(|to| send_with(sender, message, &message.bytes, rights, Some(to))).map(drop)
    }
}

/// The descriptors here that come with a message.
fn rights(item: &Item, message: &Message, all: &[Vec<Restored>]) -> Result<Vec<i32>> {
    let number = |fd: &u32| {
        let place = Place { process: item.process, fd: *fd };
        let (record, file) = behind(all, place)?;
        if record.fd & UNDER_WAY != 0 {
            numbers::mark(file, record);
        }
        Some(file.as_raw_fd())
    };
    let found: Option<Vec<i32>> = message.rights.iter().map(number).collect();
    found.ok_or_else(|| Error::new("a descriptor that was under way is missing"))
}

/// Sends bytes of a message, with descriptors, as its sender's user and group, if that may be.
fn send_with(
    through: &OwnedFd,
    message: &Message,
    bytes: &[u8],
    rights: &[i32],
    to: Option<&UnixAddr>,
) -> nix::Result<usize> {
    let [known, uid, gid] = message.sender;
    let other = known != 0 && [uid, gid] != [getuid().as_raw(), getgid().as_raw()];
    let sender = UnixCredentials::from(libc::ucred { pid: getpid().as_raw(), uid, gid });
    let with = [ControlMessage::ScmCredentials(&sender), ControlMessage::ScmRights(rights)];
    let with = &with[..if rights.is_empty() { 1 } else { 2 }];
    let send = |with| sendmsg(through.as_raw_fd(), &[IoSlice::new(bytes)], with, FLAGS, to);
    match other.then(|| send(with)) {
        None | Some(Err(Errno::EPERM | Errno::EINVAL)) => send(&with[1..]),
        Some(sent) => sent,
    }
}

/// Sends a message, or the bytes of a stream; descriptors go with the first of them.
fn send_all(through: &OwnedFd, item: &Item, message: &Message, rights: &[i32]) -> nix::Result<()> {
    let (mut done, bytes) = (0, &message.bytes[..]);
    loop {
        let rights = if done == 0 { rights } else { &[] };
        done += send_with(through, message, &bytes[done..], rights, None)?;
        if done >= bytes.len() || item.kind() != SockType::Stream {
            return Ok(());
        }
    }
}
