// SPDX-License-Identifier: LGPL-2.1-only
//! The ports and addresses of an image's TCP and UDP sockets: which others have by now, and which are to be others here.

use super::connect::Item;
use super::inet::{called, place};
use super::name::{bind_anyway, is_left};
use super::options::{self, BEFORE_BIND, FREEBIND, REUSEADDR};
use crate::error::{Error, Result};
use crate::proc::net::Place;
use ckpt_abi::image::socket_flag;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Sockets by the inode numbers that they had.
type Items = BTreeMap<u64, Item>;

/// How long the kernel keeps the port of a closed connection (include/net/tcp.h, TCP_TIMEWAIT_LEN), and a little more.
const TIME_WAIT: Duration = Duration::from_secs(65);

impl Item {
    /// Whether what is sent there comes to this socket.
    fn receives(&self, stream: bool, (ip, port): Place) -> bool {
        let here = place(&self.local);
        self.is_stream() == stream
            && !self.is_plain()
            && here.is_some_and(|(own, at)| at == port && (own == ip || own.is_unspecified()))
    }
}

/// Whether a socket sends datagrams to somebody outside, who sees whom they come from, but finds no one by it.
pub(super) fn sends_outside(item: &Item, items: &Items) -> bool {
    let to = place(&item.remote).filter(|_| !item.is_stream());
    to.is_some_and(|to| !items.values().any(|other| other.receives(false, to)))
}

/// Whether several sockets are bound to one port of one address, or of all, as only those who all have SO_REUSEPORT may be
/// at first.
pub(super) fn is_crowded(item: &Item, items: &Items) -> bool {
    let Some((own, port)) = place(&item.local) else { return false };
    let meets =
        |(ip, at): Place| at == port && (ip == own || ip.is_unspecified() || own.is_unspecified());
    let same = |other: &&Item| {
        other.is(socket_flag::BOUND)
            && other.is_stream() == item.is_stream()
            && place(&other.local).is_some_and(meets)
    };
    items.values().filter(same).count() > 1
}

/// Whether this machine has an address.
pub(super) fn is_here(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

/// Gives ports the numbers that they have here (`--map-port`), at all ends that are in the image.
pub(super) fn map(items: &mut Items, new: impl Fn(u16) -> u16) {
    let ends: Vec<(bool, Option<Place>)> = items
        .values()
        .filter(|item| !item.is_plain())
        .map(|item| (item.is_stream(), place(&item.local)))
        .collect();
    let is_end = |stream: bool, (ip, port): Place| {
        ends.iter().any(|(kind, end)| {
            let fits = |(own, at): &Place| {
                *at == port && (*own == ip || own.is_unspecified() && is_here(ip))
            };
            *kind == stream && end.as_ref().is_some_and(fits)
        })
    };
    let change = |stream: bool, name: &mut [u8]| {
        if let Some(at) = place(name).filter(|at| new(at.1) != at.1 && is_end(stream, *at)) {
            name[2..4].copy_from_slice(&new(at.1).to_be_bytes());
        }
    };
    for item in items.values_mut().filter(|item| !item.is_plain() && item.kept.is_none()) {
        let stream = item.is_stream();
        change(stream, &mut item.local);
        change(stream, &mut item.remote);
        item.messages.iter_mut().for_each(|message| change(stream, &mut message.from));
    }
}

/// Waits for ports that only the kernel has any more; all that cannot be had, in sentences. Nothing is kept.
///
/// # Errors
/// No socket can be made.
pub(super) fn problems(items: &Items) -> Result<Vec<String>> {
    let (begun, mut told, mut all) = (Instant::now(), false, Vec::new());
    let bound = |item: &&Item| item.is(socket_flag::BOUND) && !sends_outside(item, items);
    for item in items.values().filter(bound) {
        let name = called(&item.local);
        loop {
            let errno = match attempt(item, items)? {
                Ok(()) => break,
                Err(errno) => errno,
            };
            let left = errno == Errno::EADDRINUSE && item.is_stream() && is_left(&item.local);
            if !left || begun.elapsed() > TIME_WAIT {
                let problem = sentence(errno, &name);
                all.extend((!all.contains(&problem)).then_some(problem));
                break;
            }
            if !std::mem::replace(&mut told, true) {
                eprintln!(
                    "ckpt: waits for the port of {name}, which the kernel keeps for a minute after its use"
                );
            }
            std::thread::sleep(TIME_WAIT / 500);
        }
    }
    Ok(all)
}

/// Binds a socket like this one, which is closed at once. One of UDP shares its port with others only if it did.
fn attempt(item: &Item, items: &Items) -> Result<nix::Result<()>> {
    let end = item.make()?;
    let _ = options::restore(&end, &item.options, &BEFORE_BIND);
    if !item.is_stream() && !is_crowded(item, items) {
        let _ = options::restore(&end, &item.options, &[REUSEADDR]);
    }
    if item.is(socket_flag::FOREIGN) {
        let _ = options::set_int(&end, FREEBIND, 1);
    }
    Ok(bind_anyway(&end, &item.local))
}

fn sentence(errno: Errno, name: &str) -> String {
    match errno {
        Errno::EADDRINUSE => format!("the port of {name} is in use by another program"),
        Errno::EADDRNOTAVAIL => format!("this machine has not the address {name}"),
        Errno::EACCES => format!("only root may have the port of {name}"),
        errno => format!("cannot make a socket at {name}: {}", errno.desc()),
    }
}

/// A port that cannot be had after all.
pub(super) fn refused(errno: Errno, name: &str) -> Error {
    Error::new(sentence(errno, name))
}
