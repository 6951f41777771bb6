// SPDX-License-Identifier: LGPL-2.1-only
//! Multicast groups that a socket has joined (ip(7), IP_ADD_MEMBERSHIP). The kernel lists them by network interface only
//! (/proc/PID/net/igmp and igmp6); whether a socket is in one, its source filter tells (MCAST_MSFILTER, RFC 3678).
//!
//! # Safety
//! The system call reads a name of our own.
#![allow(unsafe_code)]

use super::options::{JOIN4, JOIN6, VALUE, ask, set};
use crate::proc::net::{Group, groups};
use crate::proc::{Pid, Process};
use crate::resource::descriptor::{Look, Saving};
use nix::errno::Errno;
use nix::libc;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CStr;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

/// MCAST_MSFILTER of a level.
const FILTER: i32 = 48;
/// struct group_req: an interface and a group (struct sockaddr_storage).
const REQUEST: usize = 136;
/// struct group_filter without sources: what a struct group_req has, a mode and a number of sources.
const ASKED: usize = 144;
/// Bytes of an interface's name in the image; the group's address comes behind it.
const NAME: usize = libc::IF_NAMESIZE;

/// The head of a request.
fn request<const N: usize>(interface: u32, address: &[u8]) -> [u8; N] {
    let mut request = [0; N];
    request[..4].copy_from_slice(&interface.to_ne_bytes());
    let (family, at) = match address.len() {
        4 => (libc::AF_INET, 12),
        _ => (libc::AF_INET6, 16),
    };
    request[8..10].copy_from_slice(&(family as u16).to_ne_bytes());
    request[at..at + address.len()].copy_from_slice(address);
    request
}

/// Those of IPv4 and of IPv6 of a network namespace.
type Both = Rc<[Vec<Group>; 2]>;

/// All groups of the network namespaces of processes, each read once.
#[derive(Default)]
pub(crate) struct Groups(RefCell<HashMap<Pid, (Option<PathBuf>, Both)>>);

impl Groups {
    fn of(&self, process: &Process) -> Both {
        let mut all = self.0.borrow_mut();
        if let Some((_, both)) = all.get(&process.pid()) {
            return both.clone();
        }
        let space = process.namespace("net");
        let known = all.values().find(|(other, _)| space.is_some() && *other == space);
        let read = || [false, true].map(|six| groups(process, six)).into();
        let both = known.map_or_else(read, |(_, both)| both.clone());
        all.insert(process.pid(), (space, both.clone()));
        both
    }
}

/// Adds the groups of a socket to its options; some sources alone are a loss. Only those of IPv6 can be in both kinds.
pub(super) fn save(
    fd: &OwnedFd,
    family: i32,
    look: &Look<'_>,
    saved: &mut Vec<u8>,
    saving: &mut Saving,
) {
    let kinds = match family {
        libc::AF_INET => &[JOIN4][..],
        libc::AF_INET6 => &[JOIN4, JOIN6],
        _ => return,
    };
    let both = look.tables.groups.of(look.process);
    for (&join, groups) in kinds.iter().zip(both.iter()) {
        let filter = join >> 16 << 16 | FILTER;
        for Group { interface, name, address } in groups {
            let mut asked: [u8; ASKED] = request(*interface, address);
            if !ask(fd, filter, &mut asked) {
                continue;
            }
            // All but no source (MCAST_EXCLUDE is 0).
            if asked[REQUEST..].iter().any(|byte| *byte != 0) {
                let fd = saving.record.fd;
                saving.say(format!(
                    "the sources of multicast groups that descriptor {fd}, a socket, has chosen"
                ));
                continue;
            }
            let mut value = [0; VALUE];
            value[..name.len().min(NAME - 1)].copy_from_slice(&name[..name.len().min(NAME - 1)]);
            value[NAME..NAME + address.len()].copy_from_slice(address);
            saved.extend(join.to_le_bytes());
            saved.extend(value);
        }
    }
}

/// Joins a group again that an option of the image names.
///
/// # Errors
/// What becomes of the socket: which group it is not in, and why.
pub(super) fn join(fd: impl AsFd, option: i32, value: &[u8]) -> Result<(), String> {
    let (name, rest) = value.split_at(NAME.min(value.len()));
    let name = CStr::from_bytes_until_nul(name).unwrap_or_default();
    let address = rest.get(..if option == JOIN6 { 16 } else { 4 }).unwrap_or_default();
    // SAFETY: it reads the name.
    let interface = unsafe { libc::if_nametoindex(name.as_ptr()) };
    let joined = match interface {
        0 => Err(format!("there is no network interface {} here", name.to_string_lossy())),
        _ => match set(fd, option, &request::<REQUEST>(interface, address)) {
            Ok(()) | Err(Errno::EADDRINUSE) => Ok(()),
            Err(errno) => Err(errno.desc().to_owned()),
        },
    };
    joined.map_err(|why| {
        let group = match <[u8; 4]>::try_from(address) {
            Ok(address) => IpAddr::from(address),
            Err(_) => <[u8; 16]>::try_from(address).unwrap_or_default().into(),
        };
        format!("does not hear the multicast group {group} any more: {why}")
    })
}
