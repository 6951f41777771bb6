// SPDX-License-Identifier: LGPL-2.1-only
//! Descriptors from one process of ours to another (unix(7), SCM_RIGHTS).
//!
//! # Safety
//! What arrives was made for us by the kernel.
#![allow(unsafe_code)]

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;

/// Sends two of them at most.
///
/// # Errors
/// Those of sendmsg(2).
pub(crate) fn send(line: &UnixDatagram, fds: &[RawFd]) -> nix::Result<()> {
    let (piece, rights) = ([IoSlice::new(&[0])], [ControlMessage::ScmRights(fds)]);
    sendmsg::<()>(line.as_raw_fd(), &piece, &rights, MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

/// Those that were sent, without waiting.
///
/// # Errors
/// Those of recvmsg(2).
pub(crate) fn receive(line: &UnixDatagram) -> nix::Result<Vec<OwnedFd>> {
    let mut space = cmsg_space!([RawFd; 2]);
    let mut byte = [0];
    let mut piece = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let got = recvmsg::<()>(line.as_raw_fd(), &mut piece, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    for message in got.cmsgs()? {
        if let ControlMessageOwned::ScmRights(all) = message {
            // SAFETY: the kernel has just made them for us.
            fds.extend(all.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(fds)
}
