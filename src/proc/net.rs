// SPDX-License-Identifier: LGPL-2.1-only
//! The TCP sockets of a process's network namespace, also those that no descriptor leads to (proc_net(5),
//! /proc/PID/net/tcp and tcp6).

use super::process::Process;
use super::slurp;
use super::text::{decimal, hex, lines, words};
use std::net::{IpAddr, Ipv6Addr};

/// An address and a port. A mapped address of IPv4 is one of IPv4.
pub(crate) type Place = (IpAddr, u16);

/// States of a socket (include/net/tcp_states.h).
pub(crate) mod state {
    pub(crate) const ESTABLISHED: u8 = 1;
    pub(crate) const CONNECTING: u8 = 2;
    pub(crate) const CLOSE: u8 = 7;
    pub(crate) const CLOSE_WAIT: u8 = 8;
    pub(crate) const LISTENS: u8 = 10;
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tcp {
    /// Its own end.
    pub(crate) local: Place,
    /// The other.
    pub(crate) remote: Place,
    /// One of [`state`], or another.
    pub(crate) state: u8,
    /// Bytes that can be read; an end that has come counts as one.
    pub(crate) readable: u64,
    /// 0 of one that waits to be accepted, or that nobody has any more.
    pub(crate) inode: u64,
}

/// All of them in the network namespace of a process.
pub(crate) fn tcp(process: &Process) -> Vec<Tcp> {
    both(process, ["tcp", "tcp6"])
}

/// The raw sockets of that, in the same form (/proc/PID/net/raw and raw6).
pub(crate) fn raw(process: &Process) -> Vec<Tcp> {
    both(process, ["raw", "raw6"])
}

fn both(process: &Process, names: [&str; 2]) -> Vec<Tcp> {
    let text = |name: &str| slurp(&process.path(&format!("net/{name}"))).unwrap_or_default();
    names.map(text).iter().flat_map(|text| parse(text)).collect()
}

fn parse(text: &[u8]) -> Vec<Tcp> {
    lines(text).skip(1).filter_map(one).collect()
}

/// "0: 0100007F:1F90 0100007F:A2C4 01 00000000:00000005 02:000006F4 00000000 0 0 27660 ..."
fn one(line: &[u8]) -> Option<Tcp> {
    let mut words = words(line).skip(1);
    let (local, remote) = (place(words.next()?)?, place(words.next()?)?);
    let state = hex(words.next()?).ok()? as u8;
    let readable = hex(words.next()?.split(|b| *b == b':').nth(1)?).ok()?;
    let inode = decimal(words.nth(4)?).ok()?;
    Some(Tcp { local, remote, state, readable, inode })
}

/// Words in the byte order of the machine, and the port.
fn place(word: &[u8]) -> Option<Place> {
    let (address, port) = word.split_at_checked(word.len().checked_sub(5)?)?;
    let mut bytes = Vec::new();
    for word in address.chunks_exact(8) {
        bytes.extend((hex(word).ok()? as u32).to_ne_bytes());
    }
    let port = hex(port.strip_prefix(b":")?).ok()? as u16;
    Some((ip(&bytes)?, port))
}

/// An address of four or sixteen bytes.
pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => {
            <[u8; 16]>::try_from(bytes).ok().map(|b| IpAddr::from(Ipv6Addr::from(b)).to_canonical())
        }
    }
}

/// A multicast group that somebody on a network interface has joined.
pub(crate) struct Group {
    /// The interface's number.
    pub(crate) interface: u32,
    /// And its name.
    pub(crate) name: Vec<u8>,
    /// Four or sixteen bytes.
    pub(crate) address: Vec<u8>,
}

/// All groups of all interfaces, of IPv4 or IPv6 (/proc/PID/net/igmp and igmp6).
pub(crate) fn groups(process: &Process, six: bool) -> Vec<Group> {
    let file = if six { "net/igmp6" } else { "net/igmp" };
    let text = slurp(&process.path(file)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let (mut found, mut interface, mut name) = (Vec::new(), 0, Vec::new());
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let address = match (six, &words[..]) {
            (true, [index, called, address, ..]) => {
                (interface, name) = (index.parse().unwrap_or(0), called.as_bytes().to_vec());
                u128::from_str_radix(address, 16).ok().map(|word| word.to_be_bytes().to_vec())
            }
            (false, [address, ..]) if line.starts_with('\t') => {
                u32::from_str_radix(address, 16).ok().map(|word| word.to_ne_bytes().to_vec())
            }
            (false, [index, called, ..]) => {
                let called = called.trim_end_matches(':');
                (interface, name) = (index.parse().unwrap_or(0), called.as_bytes().to_vec());
                None
            }
            _ => None,
        };
        found.extend(address.map(|address| Group { interface, name: name.clone(), address }));
    }
    found
}

pub(super) fn parse_anything(bytes: &[u8]) {
    parse(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn lines_of_both_files() {
        let four = b"header\n   0: 0100007F:1F90 0100007F:A2C4 01 00000000:00000005 02:000006F4 00000000     0        0 27660 1\n";
        let six = b"header\n   0: 0000000000000000FFFF00000100007F:1F90 0000000000000000FFFF00000100007F:A2C4 08 00000000:00000006 00:00000000 00000000     0        0 0 1\n";
        let here = |port| (IpAddr::from(Ipv4Addr::LOCALHOST), port);
        let found = parse(four);
        assert_eq!((found[0].local, found[0].remote), (here(8080), here(41668)));
        assert_eq!((found[0].state, found[0].readable, found[0].inode), (1, 5, 27660));
        let found = parse(six);
        assert_eq!((found[0].local, found[0].remote), (here(8080), here(41668)));
        assert_eq!((found[0].state, found[0].readable, found[0].inode), (8, 6, 0));
    }
}
