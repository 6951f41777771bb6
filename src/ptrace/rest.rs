// SPDX-License-Identifier: LGPL-2.1-only
//! Calls that a stop has cut short: they answer with what they had done by then, and without the stop they would have
//! gone on.
//!
//! A write(2) of a megabyte to a pipe stops after 64 KiB, a recv(2) with MSG_WAITALL in the middle, and no program
//! that takes no signals expects that. So the thread makes the rest of its call in the payload, its stack pointer at
//! a [`Rest`] on its own stack below the red zone (`payload/src/thunk.rs`, ckpt_rest), and returns with the sum. An
//! error of the rest, or a signal with a handler, ends it with what was done, as it would have. Another dump that cuts
//! the rest only corrects the [`Rest`]; an image holds it like any memory.
//!
//! Not here are calls that answer with less by themselves: read(2) of a pipe, splice(2) into one, and everything
//! that must not wait (O_NONBLOCK, MSG_DONTWAIT).

use super::fdkind::{self, Is};
use super::memory::Memory;
use super::regs::Regs;
use super::sockets;
use super::waits::{IO_PGETEVENTS, arguments, now};
use crate::proc::Pid;
use ckpt_abi::region::Rest;
use nix::libc;
use std::mem::offset_of;
use zerocopy::FromZeros;

/// What the x86-64 ABI lets a function use below its stack pointer.
const RED_ZONE: u64 = 128;
/// Bytes of a struct mmsghdr, and of a struct io_event.
const MMSGHDR: u64 = 64;
const IO_EVENT: u64 = 32;
/// The largest result of a read(2) or write(2) (include/linux/fs.h, MAX_RW_COUNT).
const MOST: u64 = 0x7fff_f000;

/// A system call to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Call {
    number: i64,
    args: [u64; 6],
}

fn call(number: i64, args: &[u64]) -> Call {
    let arg = |i: usize| args.get(i).copied().unwrap_or(0);
    Call { number, args: [arg(0), arg(1), arg(2), arg(3), arg(4), arg(5)] }
}

/// What remains of a call.
#[derive(Debug, Default, PartialEq, Eq)]
struct Remainder {
    first: Option<Call>,
    /// If the first gives so much, the second follows.
    expected: u64,
    second: Option<Call>,
    /// struct msghdr for the second; its address is filled in.
    message: Option<[u64; 7]>,
    /// struct timespec for the first; its address is filled in as the fifth argument.
    timeout: Option<u64>,
}

impl From<Call> for Remainder {
    fn from(first: Call) -> Self {
        Self { first: Some(first), ..Self::default() }
    }
}

/// Whether the stop has cut a call short that would have gone on, for arguments as of [`of`].
pub(super) fn is_cut(pid: Pid, regs: &Regs, since: Option<u64>, memory: &Memory) -> bool {
    cut(pid, regs, since, memory).is_some()
}

/// Whether a call could have been cut short, by the registers alone.
pub(super) fn may_be_cut(regs: &Regs) -> bool {
    regs.rax.cast_signed() > 0 && regs.orig_rax.cast_signed() >= 0
}

/// What was done of a call that was cut short, and what remains of it.
fn cut(pid: Pid, regs: &Regs, since: Option<u64>, memory: &Memory) -> Option<(u64, Remainder)> {
    if !may_be_cut(regs) {
        return None;
    }
    let (done, number) = (regs.rax, regs.orig_rax.cast_signed());
    let made = call(number, &arguments(regs));
    Some((done, remainder(pid, &made, done, since, memory)?))
}

/// Registers with which a thread makes the rest of a call that the stop has cut short, when it did; what they point to
/// is written. None also where the stack has no room for that. `entry` is the payload's code for it, `since` when
/// the thread began to wait (CLOCK_MONOTONIC, nanoseconds), if that is known.
pub(crate) fn of(
    pid: Pid,
    regs: &Regs,
    since: Option<u64>,
    memory: &Memory,
    entry: u64,
) -> Option<Regs> {
    let (done, rest) = cut(pid, regs, since, memory)?;
    let again = regs.rip == entry;
    let (at, mut record) = if again {
        let record: Rest = memory.get(regs.rsp).ok()?;
        if record.expected == done && record.next != 0 {
            return None;
        }
        (regs.rsp, record)
    } else {
        let at = (regs.rsp.checked_sub(RED_ZONE + size_of::<Rest>() as u64)?) & !15;
        let mut record = Rest::new_zeroed();
        (record.arguments, record.rip, record.rsp) = (arguments(regs), regs.rip, regs.rsp);
        (at, record)
    };
    record.done = record.done.saturating_add(done);
    if again && record.next != 0 {
        record.expected -= done;
    } else {
        record.expected = rest.expected;
        if let Some(mut second) = rest.second {
            if let Some(message) = rest.message {
                record.message = message;
                second.args[1] = at + offset_of!(Rest, message) as u64;
            }
            (record.next, record.next_arguments) = (second.number.cast_unsigned(), second.args);
        }
    }
    let mut first = rest.first?;
    if let Some(left) = rest.timeout {
        record.left = [left / 1_000_000_000, left % 1_000_000_000];
        first.args[4] = at + offset_of!(Rest, left) as u64;
    }
    record.call = first.number.cast_unsigned();
    memory.put(at, &record).ok()?;
    let [rdi, rsi, rdx, r10, r8, r9] = first.args;
    let (rax, rip) = (record.call, entry - 2);
    Some(Regs { rdi, rsi, rdx, r10, r8, r9, rsp: at, rip, rax, orig_rax: u64::MAX, ..*regs })
}

fn remainder(
    pid: Pid,
    made: &Call,
    done: u64,
    since: Option<u64>,
    memory: &Memory,
) -> Option<Remainder> {
    let args = &made.args;
    match made.number {
        libc::SYS_write | libc::SYS_writev | libc::SYS_pwritev2 => {
            written(pid, made, done, since, memory)
        }
        libc::SYS_read | libc::SYS_readv => read(pid, made, done, memory),
        libc::SYS_sendto | libc::SYS_sendmsg | libc::SYS_sendmmsg => {
            sent(pid, made, done, since, memory)
        }
        libc::SYS_recvfrom | libc::SYS_recvmsg => received(pid, made, done, since, memory),
        libc::SYS_recvmmsg => messages(pid, made, done, memory),
        libc::SYS_sendfile => {
            let waits = matches!(blocking(pid, args[0])?, Is::Socket | Is::Regular | Is::Terminal);
            let [out, file, at, count, ..] = *args;
            let rest = count.min(MOST).checked_sub(done).filter(|rest| *rest > 0 && waits)?;
            Some(call(made.number, &[out, file, at, rest]).into())
        }
        libc::SYS_splice => {
            const SPLICE_F_NONBLOCK: u64 = 2;
            let [from, from_at, to, to_at, len, flags] = *args;
            let out_of = blocking(pid, from)? == Is::Pipe && blocking(pid, to)? != Is::Pipe;
            let rest = len.checked_sub(done).filter(|rest| *rest > 0 && out_of)?;
            // An empty pipe ends it, as it ends a splice(2) that has moved something.
            let flags = flags | SPLICE_F_NONBLOCK;
            Some(call(made.number, &[from, from_at, to, to_at, rest, flags]).into())
        }
        libc::SYS_copy_file_range => {
            let mut args = *args;
            args[4] = args[4].min(MOST).checked_sub(done).filter(|rest| *rest > 0)?;
            Some(call(made.number, &args).into())
        }
        libc::SYS_getrandom => {
            let rest = args[1].checked_sub(done).filter(|rest| *rest > 0)?;
            Some(call(made.number, &[args[0] + done, rest, args[2]]).into())
        }
        libc::SYS_io_getevents | IO_PGETEVENTS => events(made, done, since, memory),
        libc::SYS_io_uring_enter => {
            const GETEVENTS: u64 = 1;
            const EXT_ARG: u64 = 8;
            let [fd, _, wanted, flags, arg, len] = *args;
            // What was submitted is; only the wait goes on.
            (flags & GETEVENTS != 0 && flags & EXT_ARG == 0 && wanted > 0)
                .then(|| call(made.number, &[fd, 0, wanted, flags, arg, len]).into())
        }
        _ => None,
    }
}

/// What a descriptor is, unless its calls do not wait.
fn blocking(pid: Pid, fd: u64) -> Option<Is> {
    fdkind::look(pid, fd as i32).filter(|found| !found.nonblocking).map(|found| found.is)
}

fn written(
    pid: Pid,
    made: &Call,
    done: u64,
    since: Option<u64>,
    memory: &Memory,
) -> Option<Remainder> {
    const RWF_NOWAIT: u64 = 8;
    let [fd, at, len, _, _, flags] = made.args;
    let (is, vectored) = (blocking(pid, fd)?, made.number != libc::SYS_write);
    if made.number == libc::SYS_pwritev2 && flags & RWF_NOWAIT != 0 {
        return None;
    }
    match is {
        Is::Socket => {
            sockets::goes_on(pid, fd as i32, libc::POLLOUT, since)?;
            let message = if vectored { [0, 0, at, len, 0, 0, 0] } else { [0; 7] };
            let buffer = if vectored { Vectors(at, len) } else { Vectors(0, 0) };
            let plain = (!vectored).then_some((at, len));
            send(fd, plain, &buffer, &message, libc::MSG_NOSIGNAL as u64, done, memory)
        }
        Is::Pipe | Is::Terminal if !vectored => {
            let rest = len.min(MOST).checked_sub(done).filter(|rest| *rest > 0)?;
            Some(call(libc::SYS_write, &[fd, at + done, rest]).into())
        }
        Is::Pipe | Is::Terminal => {
            let cut = Vectors(at, len).cut(done, memory)?;
            Some(cut.calls(
                |at, len| call(libc::SYS_write, &[fd, at, len]),
                |at, count| call(libc::SYS_writev, &[fd, at, count]),
            ))
        }
        _ => None,
    }
}

fn read(pid: Pid, made: &Call, done: u64, memory: &Memory) -> Option<Remainder> {
    let [fd, at, len, ..] = made.args;
    match blocking(pid, fd)? {
        // /dev/zero, /dev/urandom and kin look at signals from page to page (drivers/char/mem.c, random.c).
        Is::Endless if made.number == libc::SYS_read => {
            let rest = len.min(MOST).checked_sub(done).filter(|rest| *rest > 0)?;
            Some(call(libc::SYS_read, &[fd, at + done, rest]).into())
        }
        Is::Endless => {
            let cut = Vectors(at, len).cut(done, memory)?;
            Some(cut.calls(
                |at, len| call(libc::SYS_read, &[fd, at, len]),
                |at, count| call(libc::SYS_readv, &[fd, at, count]),
            ))
        }
        Is::Terminal if made.number == libc::SYS_read => {
            let least = fdkind::least_of_terminal(pid, fd as i32)?.min(len);
            let rest = least.checked_sub(done).filter(|rest| *rest > 0)?;
            Some(call(libc::SYS_read, &[fd, at + done, rest]).into())
        }
        _ => None,
    }
}

/// Sends the rest with flags of its own: a socket that was closed meanwhile raises SIGPIPE only where nothing was sent.
fn sent(
    pid: Pid,
    made: &Call,
    done: u64,
    since: Option<u64>,
    memory: &Memory,
) -> Option<Remainder> {
    let [fd, at, len, flags, address, address_len] = made.args;
    let flags_at = if made.number == libc::SYS_sendmsg { len } else { flags };
    if blocking(pid, fd)? != Is::Socket || flags_at & libc::MSG_DONTWAIT as u64 != 0 {
        return None;
    }
    sockets::goes_on(pid, fd as i32, libc::POLLOUT, since)?;
    let quiet = flags_at | libc::MSG_NOSIGNAL as u64;
    match made.number {
        libc::SYS_sendto => {
            let rest = len.min(MOST).checked_sub(done).filter(|rest| *rest > 0)?;
            let args = [fd, at + done, rest, quiet, address, address_len];
            Some(call(libc::SYS_sendto, &args).into())
        }
        libc::SYS_sendmsg => {
            let message: [u64; 7] = memory.get(at).ok()?;
            send(fd, None, &Vectors(message[2], message[3]), &message, quiet, done, memory)
        }
        _ => {
            let rest = len.checked_sub(done).filter(|rest| *rest > 0)?;
            // A message that itself was cut ends such a call, and is not counted in parts.
            let last = at + (done - 1) * MMSGHDR;
            let message: [u64; 8] = memory.get(last).ok()?;
            let whole = Vectors(message[2], message[3]).total(memory)? == message[7] & 0xffff_ffff;
            whole.then(|| call(libc::SYS_sendmmsg, &[fd, at + done * MMSGHDR, rest, quiet]).into())
        }
    }
}

fn send(
    fd: u64,
    plain: Option<(u64, u64)>,
    vectors: &Vectors,
    message: &[u64; 7],
    flags: u64,
    done: u64,
    memory: &Memory,
) -> Option<Remainder> {
    if let Some((at, len)) = plain {
        let rest = len.min(MOST).checked_sub(done).filter(|rest| *rest > 0)?;
        return Some(call(libc::SYS_sendto, &[fd, at + done, rest, flags]).into());
    }
    let cut = vectors.cut(done, memory)?;
    let mut rest = cut.calls(
        |at, len| {
            call(libc::SYS_sendto, &[fd, at, len, flags, message[0], message[1] & 0xffff_ffff])
        },
        |_, _| call(libc::SYS_sendmsg, &[fd, 0, flags]),
    );
    // The control data went with the first bytes.
    rest.message = Some([message[0], message[1], cut.others.0, cut.others.1, 0, 0, 0]);
    Some(rest)
}

fn received(
    pid: Pid,
    made: &Call,
    done: u64,
    since: Option<u64>,
    memory: &Memory,
) -> Option<Remainder> {
    let [fd, at, len, mut flags, address, address_len] = made.args;
    if made.number == libc::SYS_recvmsg {
        flags = len;
    }
    let has = |flag: libc::c_int| flags & flag as u64 != 0;
    let waits = has(libc::MSG_WAITALL) && !has(libc::MSG_DONTWAIT) && !has(libc::MSG_PEEK);
    if !waits || blocking(pid, fd)? != Is::Socket {
        return None;
    }
    // MSG_WAITALL means nothing to datagrams.
    sockets::is_stream(pid, fd as i32).then_some(())?;
    sockets::goes_on(pid, fd as i32, libc::POLLIN, since)?;
    if made.number == libc::SYS_recvfrom {
        let rest = len.min(MOST).checked_sub(done).filter(|rest| *rest > 0)?;
        let args = [fd, at + done, rest, flags, address, address_len];
        return Some(call(libc::SYS_recvfrom, &args).into());
    }
    let message: [u64; 7] = memory.get(at).ok()?;
    // Descriptors that came along end the call (net/unix/af_unix.c, unix_stream_read_generic).
    if message[5] != 0 && message[4] != 0 {
        return None;
    }
    let cut = Vectors(message[2], message[3]).cut(done, memory)?;
    let mut rest = cut.calls(
        |at, len| call(libc::SYS_recvfrom, &[fd, at, len, flags]),
        |_, _| call(libc::SYS_recvmsg, &[fd, 0, flags]),
    );
    rest.message = Some([0, 0, cut.others.0, cut.others.1, 0, 0, 0]);
    Some(rest)
}

fn messages(pid: Pid, made: &Call, done: u64, memory: &Memory) -> Option<Remainder> {
    let [fd, at, count, flags, timeout, _] = made.args;
    let short = (libc::MSG_WAITFORONE | libc::MSG_DONTWAIT) as u64;
    let rest = count.checked_sub(done).filter(|rest| *rest > 0 && flags & short == 0)?;
    if blocking(pid, fd)? != Is::Socket {
        return None;
    }
    // The kernel has written the time that is left.
    if timeout != 0 && memory.get::<[u64; 2]>(timeout).ok()? == [0; 2] {
        return None;
    }
    Some(call(libc::SYS_recvmmsg, &[fd, at + done * MMSGHDR, rest, flags, timeout]).into())
}

fn events(made: &Call, done: u64, since: Option<u64>, memory: &Memory) -> Option<Remainder> {
    let [context, least, most, at, timeout, mask] = made.args;
    let least = least.checked_sub(done).filter(|least| *least > 0)?;
    let args = [context, least, most - done, at + done * IO_EVENT, timeout, mask];
    let mut rest = Remainder::from(call(made.number, &args));
    if timeout != 0 {
        let [seconds, nanoseconds] = memory.get::<[u64; 2]>(timeout).ok()?;
        let whole = seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds);
        let left = since?.saturating_add(whole).saturating_sub(now());
        rest.timeout = Some(left).filter(|left| *left > 0);
        rest.timeout?;
    }
    Some(rest)
}

/// An array of struct iovec: its address and how many there are.
struct Vectors(u64, u64);

/// The vectors behind what was done: the rest of one, and the others.
struct Cut {
    rest: Option<(u64, u64)>,
    others: Vectors,
}

impl Vectors {
    /// UIO_MAXIOV.
    const MOST: u64 = 1024;

    fn total(&self, memory: &Memory) -> Option<u64> {
        (0..self.1.min(Self::MOST)).try_fold(0u64, |sum, i| {
            let [_, len]: [u64; 2] = memory.get(self.0 + 16 * i).ok()?;
            Some(sum.saturating_add(len))
        })
    }

    fn cut(&self, mut done: u64, memory: &Memory) -> Option<Cut> {
        for i in 0..self.1.min(Self::MOST) {
            let [at, len]: [u64; 2] = memory.get(self.0 + 16 * i).ok()?;
            if done < len {
                let others = Self(self.0 + 16 * (i + 1), self.1 - i - 1);
                return Some(match done {
                    0 => Cut { rest: None, others: Self(self.0 + 16 * i, self.1 - i) },
                    _ => Cut { rest: Some((at + done, len - done)), others },
                });
            }
            done -= len;
        }
        None
    }
}

impl Cut {
    fn calls(&self, one: impl Fn(u64, u64) -> Call, many: impl Fn(u64, u64) -> Call) -> Remainder {
        let others = (self.others.1 > 0).then(|| many(self.others.0, self.others.1));
        match self.rest {
            Some((at, len)) => Remainder {
                first: Some(one(at, len)),
                expected: len,
                second: others,
                ..Remainder::default()
            },
            // As the second, for its struct msghdr; the first asks for nothing.
            None => Remainder {
                first: Some(call(libc::SYS_getpid, &[])),
                expected: u64::MAX,
                second: others,
                ..Remainder::default()
            },
        }
    }
}
