// SPDX-License-Identifier: LGPL-2.1-only
//! Calls on sockets with a time-out of the socket (SO_RCVTIMEO, SO_SNDTIMEO).
//!
//! Such a call answers EINTR to a stop (include/net/sock.h, sock_intr_errno), and its time-out, which is in no
//! register, would begin anew with the call: a program that is saved more often would wait for ever. So the
//! thread first waits for the rest of it with ppoll(2), in the payload and on its own stack below the red zone
//! (`payload/src/thunk.rs`, ckpt_socket_wait), and then makes its call again or ends it. It stands there like any
//! thread in an interrupted ppoll(2): a signal with a handler ends that with EINTR, as it would have ended the
//! call, and a later checkpoint or a restart finds the time left in the memory.

use super::memory::Memory;
use super::raw;
use super::regs::Regs;
use super::waits::{arguments, now};
use crate::proc::{Pid, Process};
use ckpt_abi::region::SocketWait;
use nix::libc;
use nix::sys::socket::{SockType, getsockopt, sockopt};
use std::net::UdpSocket;

const ERESTARTNOHAND: i64 = -514;
/// What the x86-64 ABI lets a function use below its stack pointer.
const RED_ZONE: u64 = 128;

/// The events that a call waits for, and its error when the socket's time is over (socket(7)).
fn awaited(call: i64) -> Option<(i16, i32)> {
    match call {
        libc::SYS_read
        | libc::SYS_readv
        | libc::SYS_recvfrom
        | libc::SYS_recvmsg
        | libc::SYS_recvmmsg
        | libc::SYS_accept
        | libc::SYS_accept4 => Some((libc::POLLIN, libc::EAGAIN)),
        libc::SYS_write
        | libc::SYS_writev
        | libc::SYS_sendfile
        | libc::SYS_sendto
        | libc::SYS_sendmsg
        | libc::SYS_sendmmsg => Some((libc::POLLOUT, libc::EAGAIN)),
        libc::SYS_connect => Some((libc::POLLOUT, libc::EINPROGRESS)),
        _ => None,
    }
}

/// Whether a thread that makes this call may be waiting for a socket.
pub(crate) fn concerns(process: &Process, call: i64, args: &[u64; 6]) -> bool {
    awaited(call).is_some()
        && std::fs::read_link(process.fd(args[0] as u32))
            .is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
}

/// Registers with which a thread goes on that has waited for a socket since `since` (CLOCK_MONOTONIC, nanoseconds),
/// when it has a time-out; what they point to is written. None also where its stack has no room for that: then the
/// time-out begins anew. `entry` is the payload's code for it.
pub(crate) fn wait_on(
    pid: Pid,
    regs: &Regs,
    since: u64,
    memory: &Memory,
    entry: u64,
) -> Option<Regs> {
    let call = regs.orig_rax.cast_signed();
    let args = arguments(regs);
    let (events, error) = awaited(call)?;
    let limit = limit(pid, args[0] as i32, events)?;
    let left = since.saturating_add(limit).saturating_sub(now());
    let at = (regs.rsp - RED_ZONE - size_of::<SocketWait>() as u64) & !15;
    let wait = SocketWait {
        descriptor: args[0] as u32,
        events: [events.cast_unsigned(), 0],
        left: [left / 1_000_000_000, left % 1_000_000_000],
        arguments: [args[0], args[1], args[2], args[3]],
        rip: regs.rip - 2,
        call: regs.orig_rax,
        over: i64::from(-error).cast_unsigned(),
        rsp: regs.rsp,
    };
    memory.put(at, &wait).ok()?;
    Some(Regs {
        rdi: at,
        rsi: 1,
        rdx: at + std::mem::offset_of!(SocketWait, left) as u64,
        r10: 0,
        rsp: at,
        rip: entry,
        orig_rax: libc::SYS_ppoll.cast_unsigned(),
        rax: ERESTARTNOHAND.cast_unsigned(),
        ..*regs
    })
}

/// Whether a call that a stop has cut short, having moved something, would have gone on: unless its time was over.
pub(crate) fn goes_on(pid: Pid, fd: i32, events: i16, since: Option<u64>) -> Option<()> {
    match limit(pid, fd, events) {
        Some(limit) => (since?.saturating_add(limit) > now()).then_some(()),
        None => Some(()),
    }
}

/// Whether a descriptor is a socket of bytes (SOCK_STREAM).
pub(crate) fn is_stream(pid: Pid, fd: i32) -> bool {
    raw::take_descriptor(pid, fd)
        .is_ok_and(|socket| getsockopt(&socket, sockopt::SockType) == Ok(SockType::Stream))
}

/// The time-out of a socket in nanoseconds; None without one.
fn limit(pid: Pid, fd: i32, events: i16) -> Option<u64> {
    let socket = UdpSocket::from(raw::take_descriptor(pid, fd).ok()?);
    let limit = if events == libc::POLLIN { socket.read_timeout() } else { socket.write_timeout() };
    limit.ok()?.map(|limit| limit.as_nanos() as u64)
}
