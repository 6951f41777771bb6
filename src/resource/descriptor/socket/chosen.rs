// SPDX-License-Identifier: LGPL-2.1-only
//! Which options of a socket its program may have chosen, and not the kernel, a connection or the host.

use super::inet::{named, place};
use super::name;
use super::options::{DOMAIN, INFO, MAXSEG, PROTOCOL, TYPE, ask, get, int, is_usual, of, socket};
use crate::proc::net::state;
use nix::libc;
use std::os::fd::BorrowedFd;

/// The largest window (TCP_WINDOW_CLAMP), which like [`MAXSEG`] the program chooses before it connects, and the kernel from
/// then on, also when the connection is over.
const CLAMP: i32 = of(libc::IPPROTO_TCP, 10);
/// Means nothing to a connection, which does not take it (TCP_FASTOPEN_NO_COOKIE).
const NO_COOKIE: i32 = of(libc::IPPROTO_TCP, 34);
/// Those of which a socket has what the host was told (sysctl(8)): SO_BUSY_POLL, TCP_RTO_MAX_MS, RTO_MIN_US. What a new one
/// has, too, nobody has chosen.
const OF_HOST: [i32; 3] = [socket(46), of(libc::IPPROTO_TCP, 44), of(libc::IPPROTO_TCP, 45)];
/// Which processor its packets are handled by (SO_INCOMING_CPU): of one that has another end the kernel says it.
const PROCESSOR: i32 = socket(49);
/// Where a struct tcp_info has what a connection has told the other end (tcpi_advmss): 0 if there was none.
const ADVERTISED: usize = 84;

/// What has become of a socket.
pub(super) struct Chosen<'a> {
    fd: BorrowedFd<'a>,
    is_connected: bool,
    was_connected: bool,
}

impl<'a> Chosen<'a> {
    pub(super) fn of(fd: BorrowedFd<'a>) -> Self {
        let mut info = [0; ADVERTISED + 4];
        let is_connected =
            ask(fd, INFO, &mut info) && !matches!(info[0], state::CLOSE | state::LISTENS);
        let was_connected = is_connected || info[ADVERTISED..] != [0; 4];
        Self { fd, is_connected, was_connected }
    }

    /// Whether the value of an option may be the program's choice.
    pub(super) fn has(&self, option: i32, value: &[u8]) -> bool {
        match option {
            MAXSEG | CLAMP => !self.was_connected,
            NO_COOKIE => !self.is_connected,
            PROCESSOR => place(&named(self.fd, true)).is_none(),
            option if OF_HOST.contains(&option) && !is_usual(option, value) => {
                let of = |option| get(self.fd, option).unwrap_or(0);
                let new = name::new(of(DOMAIN).cast_unsigned(), of(TYPE), of(PROTOCOL)).ok();
                new.is_none_or(|new| get(new, option) != Some(int(value)))
            }
            _ => true,
        }
    }
}
