// SPDX-License-Identifier: LGPL-2.1-only
//! Connections of stream and packet sockets whose accepted end has its name from a listener: made before the program's own
//! listeners are there, each through one of ours of that name, which others do not find or whose connections are told apart.

use super::item::Item;
use super::options::{self, SNDTIMEO};
use crate::error::{Because, Result};
use crate::proc::unix::Unix;
use nix::sys::socket::{Backlog, UnixAddr, connect, getsockopt, listen, sockopt::PeerCredentials};
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

/// A listener for connections of one name.
pub(super) struct Door {
    // The type of the standard library, whatever the kind of socket.
    listener: UnixListener,
    /// Where it is found by us alone; one of an abstract name is found by that.
    hidden: Option<(UnixAddr, OwnedFd)>,
}

impl Door {
    /// A listener of this name, if it can be had.
    ///
    /// # Errors
    /// No socket can be made.
    pub(super) fn of(server: &Item) -> Result<Option<Self>> {
        let end = server.make()?;
        let hidden = match server.name.first() {
            Some(0) => {
                server.by_name(|name| nix::sys::socket::bind(end.as_raw_fd(), name)).map(|()| None)
            }
            _ => server.bind_hidden(&end).map(Some),
        };
        let Ok(hidden) = hidden else { return Ok(None) };
        listen(&end, Backlog::MAXCONN).because(|| "cannot make a listener")?;
        Ok(Some(Self { listener: end.into(), hidden }))
    }

    /// A client and what is accepted of it.
    ///
    /// # Errors
    /// What the kernel refuses, as when others fill the queue.
    pub(super) fn connection(
        &self,
        server: &Item,
        client: Option<&Item>,
        others: Option<&HashMap<u64, Unix>>,
    ) -> Result<(OwnedFd, OwnedFd)> {
        let why = || format!("cannot connect to {}", server.called());
        let end = server.make()?;
        if let Some(client) = client.filter(|client| !client.name.is_empty()) {
            client.bind(&end, others)?;
        }
        let meet = |address: &UnixAddr| connect(end.as_raw_fd(), address);
        let second = [1i64.to_ne_bytes(), [0; 8]];
        let _ = options::set(&end, SNDTIMEO, second.as_flattened());
        let met = match &self.hidden {
            Some((address, _)) => meet(address),
            None => server.by_name(meet),
        };
        let _ = options::set(&end, SNDTIMEO, &[0; 16]);
        met.because(why)?;
        // Ours is in the queue, maybe behind others'.
        loop {
            let (accepted, _) = self.listener.accept().because(why)?;
            let from = getsockopt(&accepted, PeerCredentials);
            if from.is_ok_and(|from| from.pid().cast_unsigned() == std::process::id()) {
                return Ok((end, accepted.into()));
            }
        }
    }
}
