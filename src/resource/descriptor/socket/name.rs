// SPDX-License-Identifier: LGPL-2.1-only
//! Calls on TCP and UDP sockets that are being made, and their names.
//!
//! # Safety
//! The system calls read names of our own, whose lengths they are given; a descriptor that one has made is ours.
#![allow(unsafe_code)]

use super::inet::{named, place};
use super::options::{self, NO_PORT, PORT_RANGE, REUSEADDR, SNDTIMEO};
use crate::proc::Process;
use crate::proc::net::{self, Tcp};
use nix::errno::Errno;
use nix::libc;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub(super) fn new(family: u32, kind: i32, protocol: i32) -> nix::Result<OwnedFd> {
    // SAFETY: numbers only.
    let fd = unsafe { libc::socket(family as i32, kind | libc::SOCK_CLOEXEC, protocol) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made it for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let _ = options::set_int(&fd, REUSEADDR, 1);
    Ok(fd)
}

pub(super) fn bind(fd: &OwnedFd, name: &[u8]) -> nix::Result<()> {
    let at = name.as_ptr().cast();
    // SAFETY: the kernel reads the name.
    Errno::result(unsafe { libc::bind(fd.as_raw_fd(), at, name.len() as u32) }).map(drop)
}

/// Binds a socket, once more where a connection that is over keeps the port (TIME_WAIT).
pub(super) fn bind_anyway(fd: &OwnedFd, name: &[u8]) -> nix::Result<()> {
    match bind(fd, name) {
        Err(Errno::EADDRINUSE) => {
            clear(name);
            bind(fd, name)
        }
        bound => bound,
    }
}

/// Ends what the kernel keeps of connections of this machine with itself that are over, and had this port: a new one
/// between the same ends is answered with an acknowledgement of the old, which the client resets (RFC 1337).
pub(super) fn clear(name: &[u8]) {
    const TIME_WAIT: u8 = 6;
    let port = place(name).map(|(_, port)| port);
    let over = |tcp: &Tcp| tcp.state == TIME_WAIT && Some(tcp.local.1) == port;
    for tcp in own().into_iter().filter(over) {
        let family = if tcp.local.0.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let [local, remote] = [tcp.local, tcp.remote].map(|end| name_of(end, family as u32));
        let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK;
        let Ok(end) = new(family as u32, kind, 0) else { continue };
        if bind(&end, &remote).or_else(|_| bind_late(&end, remote)).is_ok() {
            let _ = connect(&end, &local);
        }
    }
}

/// Has a connection come from a port that nobody can bind: another connection has it, or its own last one, of which both
/// ends are kept, as they closed it at once. The kernel takes such a port by itself; of addresses of a loopback device
/// (127.0.0.0/8, ::1) also from that last one, when it has been over for a second (tcp_twsk_unique in net/ipv4/tcp_ipv4.c).
fn bind_late(fd: &OwnedFd, mut name: Vec<u8>) -> nix::Result<()> {
    let port = place(&name).map_or(0, |(_, port)| i32::from(port));
    options::set_int(fd, NO_PORT, 1)?;
    options::set_int(fd, PORT_RANGE, port << 16 | port)?;
    name[2..4].fill(0);
    bind(fd, &name)
}

/// The connections of this machine.
fn own() -> Vec<Tcp> {
    Process::own().map(|own| net::tcp(&own)).unwrap_or_default()
}

/// Whether nobody has the port but the kernel, which keeps it for what may still be under way.
pub(super) fn is_left(name: &[u8]) -> bool {
    let port = place(name).map(|(_, port)| port);
    let all = own();
    let mut there = all.iter().filter(|tcp| Some(tcp.local.1) == port).peekable();
    there.peek().is_some() && there.all(|tcp| tcp.inode == 0)
}

/// Connects, which takes no time on one machine, unless something swallows the packets: then a second.
pub(super) fn connect(fd: &OwnedFd, name: &[u8]) -> nix::Result<()> {
    let second = [1i64.to_ne_bytes(), [0; 8]];
    let _ = options::set(fd, SNDTIMEO, second.as_flattened());
    let at = name.as_ptr().cast();
    // SAFETY: the kernel reads the name.
    let connected = unsafe { libc::connect(fd.as_raw_fd(), at, name.len() as u32) };
    let _ = options::set(fd, SNDTIMEO, &[0; 16]);
    Errno::result(connected).map(drop)
}

pub(super) fn listen(fd: &OwnedFd, backlog: u32) -> nix::Result<()> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::listen(fd.as_raw_fd(), backlog) }).map(drop)
}

/// A name with this machine's own address, of IPv4 if that is wanted, and a port of the kernel's choice, for a socket of
/// `family`.
pub(super) fn own_name(family: u32, four: bool) -> Vec<u8> {
    let mut name = (family as u16).to_ne_bytes().to_vec();
    match (family as i32, four) {
        (libc::AF_INET, _) => name.extend([0, 0, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        (_, mapped) => {
            name.extend([0; 16]);
            name.extend(if mapped { [255, 255, 127, 0, 0, 1] } else { [0, 0, 0, 0, 0, 1] });
            name.extend([0; 4]);
        }
    }
    name
}

/// A name as a socket of `family` has it.
pub(super) fn translated(name: &[u8], family: u32) -> Vec<u8> {
    place(name).map_or_else(|| name.to_vec(), |at| name_of(at, family))
}

/// The name of an address and a port for a socket of `family`.
pub(super) fn name_of((ip, port): net::Place, family: u32) -> Vec<u8> {
    let mut name = own_name(family, ip.is_ipv4());
    name[2..4].copy_from_slice(&port.to_be_bytes());
    match (ip, family as i32) {
        (IpAddr::V4(ip), libc::AF_INET) => name[4..8].copy_from_slice(&ip.octets()),
        (IpAddr::V4(ip), _) => name[20..24].copy_from_slice(&ip.octets()),
        (IpAddr::V6(ip), libc::AF_INET6) => name[8..24].copy_from_slice(&ip.octets()),
        (IpAddr::V6(_), _) => {}
    }
    name
}

/// A name to which `sender`, which the datagram is from, can send: a socket of any address is reached at the sender's.
pub(super) fn addressed(to: &[u8], from: Option<net::Place>, sender: &OwnedFd) -> Vec<u8> {
    let family = options::get(sender, options::DOMAIN).unwrap_or(0) as u32;
    match (place(to), from) {
        (Some((ip, port)), Some((sender, _))) if ip.is_unspecified() => {
            name_of((sender, port), family)
        }
        _ => translated(to, family),
    }
}

/// The connection of this client, of all that are made to a listener.
pub(super) fn accept(listener: &OwnedFd, client: &OwnedFd) -> nix::Result<OwnedFd> {
    let wanted = place(&named(client, false));
    loop {
        let (name, len) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: it writes nowhere.
        let fd = unsafe { libc::accept4(listener.as_raw_fd(), name, len, libc::SOCK_CLOEXEC) };
        let fd = Errno::result(fd)?;
        // SAFETY: the kernel has just made it for us.
        let accepted = unsafe { OwnedFd::from_raw_fd(fd) };
        if place(&named(&accepted, true)) == wanted {
            return Ok(accepted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{Shutdown, shutdown};

    /// A socket without SO_REUSEADDR, as most are.
    fn plain() -> OwnedFd {
        let made = new(libc::AF_INET as u32, libc::SOCK_STREAM, 0).expect("a socket");
        options::set_int(&made, REUSEADDR, 0).expect("an option");
        made
    }

    /// A listener at 127.0.0.1, and its name.
    fn listener() -> (OwnedFd, Vec<u8>) {
        let made = plain();
        bind(&made, &own_name(libc::AF_INET as u32, true)).expect("a port");
        listen(&made, 1).expect("it listens");
        let name = named(&made, false);
        (made, name)
    }

    #[test]
    fn what_is_left_of_a_connection_keeps_no_port() {
        let ((first, at), (second, other)) = (listener(), listener());
        let old = plain();
        connect(&old, &at).expect("a connection");
        let from = named(&old, false);
        // The server closes first.
        drop(accept(&first, &old).expect("it comes"));
        shutdown(old.as_raw_fd(), Shutdown::Both).expect("an end");
        drop((old, first));
        // Whoever has the client's port by now has not to do with it.
        let stranger = plain();
        bind_late(&stranger, from.clone()).expect("a range of one port");
        connect(&stranger, &other).expect("a connection");
        assert_eq!(named(&stranger, false), from);
        let next = new(libc::AF_INET as u32, libc::SOCK_STREAM, 0).expect("a socket");
        assert_eq!(bind(&next, &from), Err(Errno::EADDRINUSE));
        assert_eq!(bind(&next, &at), Err(Errno::EADDRINUSE));
        assert_eq!(bind_anyway(&next, &at), Ok(()));
        drop(second);
    }
}
