// SPDX-License-Identifier: LGPL-2.1-only
//! Sockets that know neither connections nor ports: raw(7), packet(7), netlink(7), ping sockets (icmp(7)). They are made
//! and bound again where the restarter may have such; what waited in them came from others.
//!
//! # Safety
//! The system calls read or write a name of our own, which has the room that they need.
#![allow(unsafe_code)]

use super::connect::Item;
use super::inet::{Inet, place};
use super::make::set_options;
use super::name::{bind, connect, name_of, new};
use super::options::{self, BEFORE_BIND};
use super::queue;
use crate::error::Result;
use crate::proc::net;
use crate::resource::descriptor::{Look, Saving, lost};
use nix::errno::Errno;
use nix::libc;
use std::ffi::CString;
use std::os::fd::OwnedFd;

/// Where struct sockaddr_ll has the number of the interface, and struct sockaddr_nl the port and the groups.
const NUMBER: std::ops::Range<usize> = 4..8;
const GROUPS: std::ops::Range<usize> = 8..12;

/// Names what of such a socket nobody can save.
pub(super) fn name_losses(own: &Inet, ours: &OwnedFd, saving: &mut Saving) {
    let fd = saving.record.fd;
    if own.family == libc::AF_PACKET {
        saving.say(format!(
            "the groups that packet socket {fd} has joined, and its rings (packet(7))"
        ));
    }
    if queue::answers(ours, libc::POLLIN) {
        saving.say(format!("messages of others that wait at descriptor {fd}"));
    }
}

/// Whom it is connected to; of a packet socket, the name of its interface.
pub(super) fn remote(own: &Inet, inode: u64, look: &Look<'_>) -> Vec<u8> {
    let number = |name: &[u8]| name.get(NUMBER)?.first_chunk().map(|n| u32::from_ne_bytes(*n));
    match own.family {
        libc::AF_PACKET => number(&own.local).map_or_else(Vec::new, interface),
        // One that is not connected has zeros there.
        libc::AF_NETLINK if own.remote.get(4..).is_none_or(|rest| rest.iter().all(|b| *b == 0)) => {
            Vec::new()
        }
        _ if own.kind == libc::SOCK_RAW && own.remote.is_empty() => {
            // getpeername(2) knows none without a port.
            let all = net::raw(look.process);
            let line = all.iter().find(|line| line.inode == inode);
            let to = line.map(|line| line.remote).filter(|(ip, _)| !ip.is_unspecified());
            to.map_or_else(Vec::new, |to| name_of(to, own.family as u32))
        }
        _ => own.remote.clone(),
    }
}

/// The name of a network interface, if it has one.
fn interface(number: u32) -> Vec<u8> {
    let mut name = [0u8; libc::IF_NAMESIZE];
    // SAFETY: it writes at most IF_NAMESIZE bytes.
    let found = unsafe { libc::if_indextoname(number, name.as_mut_ptr().cast()) };
    match found.is_null() {
        true => Vec::new(),
        false => name.split(|b| *b == 0).next().unwrap_or_default().to_vec(),
    }
}

/// Makes one; where that is forbidden here, its number answers EBADF, and a sentence says so.
pub(super) fn make(item: &Item, warnings: &mut Vec<String>) -> Result<OwnedFd> {
    let (family, kind) = (item.socket.family as i32, item.socket.kind as i32);
    let what = match (family, kind) {
        (libc::AF_NETLINK, _) => "a netlink socket",
        (libc::AF_PACKET, _) => "a packet socket",
        (_, libc::SOCK_RAW) => "a raw socket",
        _ => "a ping socket",
    };
    let end = match new(item.socket.family, kind, item.socket.protocol as i32) {
        Ok(end) => end,
        Err(errno) => {
            warnings.push(format!("the program is without {what}: {}", errno.desc()));
            return lost::stand_in();
        }
    };
    let _ = options::restore(&end, &item.options, &BEFORE_BIND);
    if let Err(errno) = bound(item, &end) {
        warnings.push(format!("{what} is not bound as it was: {}", errno.desc()));
    }
    if family != libc::AF_PACKET && !item.remote.is_empty() {
        let refused = connect(&end, &item.remote).err();
        warnings.extend(refused.map(|e| format!("{what} is not connected: {}", e.desc())));
    }
    set_options(&end, &item.options, warnings);
    Ok(end)
}

/// Binds it, in any case if what the kernel chooses by itself is taken.
fn bound(item: &Item, end: &OwnedFd) -> nix::Result<()> {
    let mut name = item.local.clone();
    let is_set = |bytes: Option<&[u8]>| bytes.is_some_and(|b| b.iter().any(|b| *b != 0));
    match item.socket.family as i32 {
        libc::AF_PACKET => {
            if let (Some(number), false) = (name.get_mut(NUMBER), item.remote.is_empty()) {
                let called = CString::new(&item.remote[..]).map_err(|_| Errno::EINVAL)?;
                // SAFETY: it reads the name.
                let here = unsafe { libc::if_nametoindex(called.as_ptr()) };
                number.copy_from_slice(&here.to_ne_bytes());
            }
            // The kernel shows more of the address than it takes.
            name.resize(size_of::<libc::sockaddr_ll>(), 0);
            if is_set(name.get(2..8)) { bind(end, &name) } else { Ok(()) }
        }
        libc::AF_NETLINK => {
            if !is_set(name.get(NUMBER)) {
                return Ok(());
            }
            // Its groups come with its options.
            name[GROUPS].fill(0);
            bind(end, &name).or_else(|_| {
                name[NUMBER].fill(0);
                bind(end, &name)
            })
        }
        _ => match place(&name) {
            Some((ip, port)) if item.socket.kind as i32 == libc::SOCK_RAW || port == 0 => {
                if ip.is_unspecified() { Ok(()) } else { bind(end, &name) }
            }
            _ => bind(end, &name).or_else(|_| {
                name[2..4].fill(0);
                bind(end, &name)
            }),
        },
    }
}
