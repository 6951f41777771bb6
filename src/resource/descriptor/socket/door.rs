// SPDX-License-Identifier: LGPL-2.1-only
//! Connections of stream and packet sockets whose accepted end has its name from a listener, each through one of ours of
//! that name, which others do not find; or, of an abstract name, through the program's own, and told apart from others'.

use super::item::Item;
use super::queue::answers;
use crate::error::{Because, Result};
use crate::resource::descriptor::open::owned;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{Backlog, SockFlag, UnixAddr, accept4, connect, getsockopt, listen};
use std::cell::Cell;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long others may be in the way, of all connections together.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long they have been, in nanoseconds.
static SPENT: AtomicU64 = AtomicU64::new(0);

/// A listener for connections of one name.
pub(super) struct Door {
    pub(super) listener: OwnedFd,
    /// Where it is found by us alone; one of an abstract name is found by that.
    hidden: Option<(UnixAddr, OwnedFd)>,
    /// As whom it was last told to listen (SO_PEERCRED); 0: as nobody who matters.
    pub(super) by: Cell<[u32; 3]>,
}

impl Door {
    /// A listener of this name, if it can be had.
    ///
    /// # Errors
    /// No socket can be made.
    pub(super) fn of(server: &Item) -> Result<Option<Self>> {
        let listener = server.make()?;
        let hidden = match server.name.first() {
            Some(0) => server
                .by_name(|name| nix::sys::socket::bind(listener.as_raw_fd(), name))
                .map(|()| None),
            _ => server.bind_hidden(&listener).map(Some),
        };
        let Ok(hidden) = hidden else { return Ok(None) };
        listen(&listener, Backlog::MAXCONN).because(|| "cannot make a listener")?;
        Ok(Some(Self { listener, hidden, by: Cell::new([0; 3]) }))
    }

    /// The program's own listener of an abstract name.
    ///
    /// # Errors
    /// Too many descriptors.
    pub(super) fn at(listener: &OwnedFd) -> Result<Self> {
        let listener = listener.try_clone().because(|| "cannot duplicate a socket")?;
        Ok(Self { listener, hidden: None, by: Cell::new([0; 3]) })
    }

    /// Connects a socket; what is accepted of it.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(super) fn connect(&self, server: &Item, end: &OwnedFd) -> nix::Result<OwnedFd> {
        let meet = |address: &UnixAddr| connect(end.as_raw_fd(), address);
        connect_through(&self.listener, end, true, &|| match &self.hidden {
            Some((address, _)) => meet(address),
            None => server.by_name(meet),
        })?;
        // It is in the queue, maybe behind others'.
        loop {
            let accepted = accepted(&self.listener)?;
            let from = getsockopt(&accepted, PeerCredentials);
            if from.is_ok_and(|from| from.pid() == nix::unistd::getpid().as_raw()) {
                return Ok(accepted);
            }
        }
    }
}

/// Connects a socket to a listener. While its queue is full of others', these are sent away if they are `alone` there, as
/// whoever came before there was a listener.
///
/// # Errors
/// What the kernel refuses.
pub(super) fn connect_through(
    listener: &OwnedFd,
    end: &OwnedFd,
    alone: bool,
    connect: &dyn Fn() -> nix::Result<()>,
) -> nix::Result<()> {
    let begun = Instant::now();
    let spent = SPENT.load(Ordering::Relaxed);
    // The program's own flags come when it has its number.
    fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    loop {
        match connect() {
            Err(Errno::EAGAIN) if Duration::from_nanos(spent) + begun.elapsed() < PATIENCE => {}
            done => return fcntl(end, FcntlArg::F_SETFL(OFlag::empty())).and(done),
        }
        if alone {
            while answers(listener, libc::POLLIN) {
                drop(accepted(listener));
            }
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
        SPENT.store(spent + begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
}

fn accepted(listener: &OwnedFd) -> nix::Result<OwnedFd> {
    owned(accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?.into())
}
