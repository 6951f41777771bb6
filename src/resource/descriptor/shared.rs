// SPDX-License-Identifier: LGPL-2.1-only
//! Descriptions that several processes of a tree have: opened once, before the processes are made, which inherit them.
//!
//! # Safety
//! A process that was made by a fork has the descriptors of its maker under the same numbers, in a table of its own, so
//! each number has one owner in it.
#![allow(unsafe_code)]

use super::{Origin, Place, Restored};
use crate::proc::fds::UNDER_WAY;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Of all that was opened for a tree, what process `number` has; called in that process. The descriptors of the others
/// stay open, without an owner, until the process closes what is not its own ([`super::numbers::install`]).
pub(crate) fn of_process(all: Vec<Vec<Restored>>, number: u32) -> Vec<Restored> {
    let mut led: HashMap<Place, Source> = HashMap::new();
    let mut own = Vec::new();
    for (process, restored) in (0..).zip(all) {
        for Restored { record, origin } in restored {
            let source = match &origin {
                Origin::Own(file) => Some(Source::Number(file.as_raw_fd())),
                Origin::Standard(number) => Some(Source::Standard(*number)),
                Origin::Shared(_) | Origin::Elsewhere(_) => None,
            };
            let place = Place { process, fd: record.fd };
            led.extend(source.map(|source| (place, source)));
            // What was under way is so again, and nobody's.
            if process == number && record.fd & UNDER_WAY == 0 {
                own.push(Restored { record, origin });
            } else if let Origin::Own(file) = origin {
                std::mem::forget(file);
            }
        }
    }
    let mut first: HashMap<Place, u32> = HashMap::new();
    for Restored { record, origin } in &mut own {
        let Origin::Elsewhere(leader) = *origin else { continue };
        *origin = match (first.get(&leader), led.get(&leader)) {
            (Some(fd), _) => Origin::Shared(*fd),
            (None, Some(Source::Standard(number))) => Origin::Standard(*number),
            // SAFETY: the leader's owner in this process was forgotten above.
            (None, Some(Source::Number(fd))) => Origin::Own(unsafe { OwnedFd::from_raw_fd(*fd) }),
            (None, None) => continue,
        };
        record.shared_with = *first.entry(leader).or_insert(record.fd);
        record.shared_process = number;
    }
    own
}

/// What leads a description, in every process.
enum Source {
    Number(i32),
    Standard(u32),
}
