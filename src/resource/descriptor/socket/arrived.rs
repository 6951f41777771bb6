// SPDX-License-Identifier: LGPL-2.1-only
//! What has come to TCP and UDP sockets and waits to be read or accepted.

use super::inet::{FIN_WAIT1, FIN_WAIT2, Inet, called, judge, other_end, place};
use super::ports::is_here;
use super::{Tie, drain, gone_client, inet, queue};
use crate::error::Result;
use crate::order;
use crate::proc::fds::Fd;
use crate::proc::net::{Tcp, state};
use crate::ptrace::raw;
use crate::resource::descriptor::{Look, Saving};
use nix::libc;
use std::os::fd::OwnedFd;

/// What can be read from a TCP socket, when all has come.
pub(super) fn of_stream(
    own: &Inet,
    ours: &OwnedFd,
    tie: Tie,
    look: &Look<'_>,
    saving: &mut Saving,
) -> Result<Vec<queue::Message>> {
    let called = || format!("{} from {}", called(&own.local), called(&own.remote));
    match own.state {
        state::LISTENS => {
            name_waiting(own, look, saving);
            return Ok(Vec::new());
        }
        state::CONNECTING => return Ok(Vec::new()),
        _ => {}
    }
    let untouched = look.tables.untouched;
    let all_come = match tie {
        Tie::Peer(_) | Tie::Abandoned if untouched => true,
        Tie::Peer(peer) => {
            let sender = look.tables.inet().get(&peer).map(|other| other.at);
            let sender =
                sender.and_then(|(pid, fd)| raw::take_descriptor(pid, fd.cast_signed()).ok());
            let under_way = || sender.as_ref().map_or(0, drain::unsent);
            drain::drain(ours, sender.as_ref(), under_way)
        }
        Tie::Abandoned => {
            let state = || Inet::of(ours, own.at).map_or(state::CLOSE, |now| now.state);
            let open = || matches!(state(), state::ESTABLISHED | FIN_WAIT1 | FIN_WAIT2);
            drain::drain(ours, None, || if open() { AT_MOST } else { 0 })
        }
        Tie::Waits(..) => {
            let other = other_end(own, look);
            let end = u64::from(other.is_some_and(|other| other.state == state::CLOSE_WAIT));
            other.is_none_or(|other| other.readable <= end) && drain::unsent(ours) == 0
        }
        Tie::None | Tie::Outside | Tie::Named(_) => true,
    };
    if !all_come {
        saving.passing.push(match tie {
            Tie::Waits(..) => format!(
                "{} has been sent data before it accepted the connection from {}: they can be saved when it has",
                inet::called(&own.remote), inet::called(&own.local)
            ),
            _ => format!("{} has no room for all that was sent to it: it has to read first", called()),
        });
    }
    let waiting = match untouched {
        true => queue::glance(ours),
        // What TLS of the kernel has not deciphered, or has for another call, cannot be looked at.
        false => match queue::stream(ours, drain::readable(ours)) {
            Err(_) if !own.plain => queue::Waiting::default(),
            waiting => waiting?,
        },
    };
    let urgent = waiting.unseen || queue::answers(ours, libc::POLLPRI);
    if urgent && tie != Tie::Outside {
        saving
            .obstacles
            .push(format!("{} has been sent urgent data, which it has to read first", called()));
    }
    Ok(waiting.messages)
}

/// The most that a sender who is gone may have left, in bytes (tcp_wmem).
const AT_MOST: usize = 4 << 20;

/// Whether a client of this machine has closed its end before it was accepted: what it has sent is in nobody's hands.
fn has_gone_client(own: &Inet, look: &Look<'_>) -> bool {
    let (port, all) = (own.local().map(|local| local.1), look.tables.tcp());
    let is_held = |it: &Tcp| {
        let ends = (it.remote, it.local);
        all.iter().any(|other| other.inode != 0 && (other.local, other.remote) == ends)
    };
    all.iter().any(|it| {
        let here = it.remote.0.is_loopback() || it.remote.0 == it.local.0;
        let waits = it.inode == 0 && it.state == state::CLOSE_WAIT && Some(it.local.1) == port;
        waits && here && !is_held(it)
    })
}

/// Connections that somebody else waits for.
fn name_waiting(own: &Inet, look: &Look<'_>, saving: &mut Saving) {
    if own.queue[0] == 0 {
        return;
    }
    if has_gone_client(own, look) {
        saving.passing.push(gone_client(&called(&own.local)));
    }
    let waits = |fd: &&Fd| matches!(judge(fd, look), Some((_, Tie::Waits(listener, _))) if listener == saving.record.inode);
    let mut inodes: Vec<u64> =
        look.tables.everywhere().map(|(_, fd)| fd).filter(waits).map(|fd| fd.inode).collect();
    order::numbers(&mut inodes);
    inodes.dedup();
    let outside = (own.queue[0] as usize).saturating_sub(inodes.len());
    if outside > 0 {
        let called = called(&own.local);
        saving.say(format!("{outside} connections of others that wait to be accepted at {called}"));
    }
}

/// What waits at a UDP socket.
pub(super) fn of_datagrams(
    own: &Inet,
    ours: &OwnedFd,
    look: &Look<'_>,
    saving: &mut Saving,
) -> Result<Vec<queue::Message>> {
    // A look would take the error away.
    if queue::answers(ours, libc::POLLERR) {
        saving.say(format!(
            "an error that {} has not been told, and what waits there",
            called(&own.local)
        ));
        return Ok(Vec::new());
    }
    if look.tables.untouched {
        return Ok(Vec::new());
    }
    let queue::Waiting { messages, doubtful, .. } = queue::messages(ours, None)?;
    if doubtful {
        saving.say(queue::doubt(&called(&own.local)));
    }
    // One of any address sends from those that this machine has.
    let sends = |it: &Inet, from| {
        let exactly = it.local() == Some(from);
        !it.is_tcp() && (exactly || it.receives(from) && is_here(from.0))
    };
    let known = |message: &&queue::Message| {
        let from = place(&message.from);
        from.is_some_and(|from| look.tables.inet().values().any(|it| sends(it, from)))
    };
    let strange = messages.iter().filter(|message| !known(message)).count();
    if strange > 0 {
        saving.say(format!("{strange} messages of others that wait at {}", called(&own.local)));
    }
    Ok(messages.iter().filter(known).cloned().collect())
}
