// SPDX-License-Identifier: LGPL-2.1-only
//! Rings of asynchronous I/O (io_setup(2)), whose address is the program's handle for them.
//!
//! The kernel keeps the place where it will write the next event, and who fills the ring moves that on. A new ring of the
//! same size is therefore brought to that place by requests that read nothing, of which as many are left as there were
//! events that nobody had taken; these are written over theirs. Nobody can see requests that are still under way.
//!
//! # Safety
//! The kernel writes events where the calls say; the ring is a mapping that it has just made.
#![allow(unsafe_code)]

use crate::error::{Because, Error, Result};
use crate::proc::Pid;
use crate::proc::maps::Vma;
use crate::ptrace::memory::Memory;
use crate::resource::{Gathered, Target};
use nix::errno::Errno;
use nix::libc;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

const MAGIC: u32 = 0xa10a_10a1;
/// Bytes of an event, and of what is before the first.
const EVENT: u64 = 32;
/// How long no request may have come to its end before none is taken to be under way, and how long that is waited for.
const QUIET: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(1);

/// struct aio_ring (fs/aio.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Head {
    id: u32,
    nr: u32,
    head: u32,
    tail: u32,
    magic: u32,
    compatible: u32,
    incompatible: u32,
    length: u32,
}

const _: () = assert!(size_of::<Head>() as u64 == EVENT);

impl Head {
    /// Whether it is that of a ring of `len` bytes.
    fn fits(&self, len: u64) -> bool {
        self.magic == MAGIC
            && self.length as u64 == EVENT
            && self.incompatible == 0
            && (u64::from(self.nr) + 1) * EVENT == len
            && self.head < self.nr
            && self.tail < self.nr
    }
}

pub(crate) fn is_ring(vma: &Vma) -> bool {
    vma.name == "/[aio]"
}

/// The rings of processes that stand still, by process and address, as they are since [`QUIET`].
#[derive(Default)]
pub(crate) struct Quiet(HashMap<(Pid, u64), Head>);

impl Quiet {
    /// Waits until no request to any of them comes to its end any more, at most for [`PATIENCE`].
    pub(crate) fn of<'a>(all: impl Iterator<Item = (&'a Memory, &'a [Vma])>) -> Self {
        let rings = |(memory, vmas): (&'a Memory, &'a [Vma])| {
            vmas.iter().filter(|vma| is_ring(vma)).map(move |vma| (memory, vma))
        };
        let rings: Vec<_> = all.flat_map(rings).collect();
        let look = || rings.iter().map(|(memory, vma)| head(memory, vma)).collect::<Vec<_>>();
        let (begun, mut before) = (Instant::now(), look());
        while !rings.is_empty() {
            std::thread::sleep(QUIET);
            let now = look();
            if now == before || begun.elapsed() > PATIENCE {
                let same = rings.iter().zip(before).zip(now).filter(|((_, old), now)| old == now);
                let same = same.filter_map(|(((memory, vma), _), now)| {
                    Some(((memory.pid(), vma.start), now?))
                });
                return Self(same.collect());
            }
            before = now;
        }
        Self::default()
    }
}

/// The head of a ring, if that is one that we know.
fn head(memory: &Memory, vma: &Vma) -> Option<Head> {
    memory.get::<Head>(vma.start).ok().filter(|head| head.fits(vma.len()))
}

/// What is in the way of saving a ring, and what nobody can see.
pub(super) fn save(target: &Target<'_>, vma: &Vma, quiet: &Quiet, gathered: &mut Gathered) {
    let at = vma.start;
    let Some(now) = head(target.memory, vma) else {
        gathered.obstacles.push(format!(
            "it uses asynchronous I/O (io_setup(2)), whose ring at {at:#x} is not as others"
        ));
        return;
    };
    let stands = !target.frozen.threads.is_empty();
    if stands && quiet.0.get(&(target.memory.pid(), at)) != Some(&now) {
        gathered.passing.push(format!(
            "it uses asynchronous I/O (io_setup(2)), and requests to the ring at {at:#x} are under way"
        ));
        return;
    }
    let known = "requests of asynchronous I/O";
    if !gathered.losses.iter().any(|loss| loss.starts_with(known)) {
        gathered.losses.push(
            "requests of asynchronous I/O that are still under way, if there are any: nobody can see them (io_submit(2))".into(),
        );
    }
}

/// struct iocb (linux/aio_abi.h).
#[derive(FromZeros, IntoBytes, Immutable)]
#[repr(C)]
struct Request {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: i32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: i32,
}

const _: () = assert!(size_of::<Request>() == 64);

/// Makes a ring with what was saved of one; the address of the `saved.len()` bytes of its mapping.
///
/// # Errors
/// The kernel has none of the same size.
pub(crate) fn make(saved: &[u8]) -> Result<u64> {
    let why = || "cannot have a ring for asynchronous I/O (io_setup(2))";
    let len = saved.len() as u64;
    let wanted = Head::read_from_prefix(saved).ok().map(|(head, _)| head);
    let wanted = wanted.filter(|head| head.fits(len));
    let wanted = wanted.ok_or_else(|| Error::new("a ring for asynchronous I/O is damaged"))?;
    let mut context = 0u64;
    let at: *mut u64 = &mut context;
    let events = (wanted.nr.max(3) - 2) / 2;
    // SAFETY: the kernel writes the one word.
    let made = Errno::result(unsafe { libc::syscall(libc::SYS_io_setup, events, at) });
    made.because(why).map_err(|e| match e.errno() {
        libc::EAGAIN => e.hint("raise fs.aio-max-nr (sysctl)"),
        libc::ENOSYS | libc::EPERM => e.hint("a sandbox (seccomp), or a kernel without CONFIG_AIO"),
        _ => e,
    })?;
    if !head_at(context).fits(len) {
        return Err(Error::new(format!("{}: one of another size", why()))
            .hint("restart it on a machine with as many processors"));
    }
    let nothing = File::open("/dev/null").because(why)?;
    let turn = |count: u32, takes: bool| advance(context, nothing.as_raw_fd(), count, takes);
    turn(wanted.head, true)?;
    let unread = (wanted.tail + wanted.nr - wanted.head) % wanted.nr;
    turn(unread, false)?;
    let to: *mut u8 = std::ptr::with_exposed_provenance_mut((context + EVENT) as usize);
    let events = saved.get(EVENT as usize..).unwrap_or_default();
    // SAFETY: the mapping has as many bytes, the kernel does not write there without requests, and no slice of it exists.
    unsafe { std::ptr::copy_nonoverlapping(events.as_ptr(), to, events.len()) };
    Ok(context)
}

/// The head of a ring of our own.
fn head_at(context: u64) -> Head {
    let at: *const Head = std::ptr::with_exposed_provenance(context as usize);
    // SAFETY: io_setup(2) has just mapped it there.
    unsafe { at.read_volatile() }
}

/// Makes `count` requests that read nothing, and takes their events.
fn advance(context: u64, nothing: i32, mut count: u32, takes: bool) -> Result<()> {
    const AT_ONCE: u32 = 64;
    let why = || "cannot bring a ring for asynchronous I/O to its place (io_submit(2))";
    let mut request = Request::new_zeroed();
    request.fd = nothing;
    let one: *mut Request = &mut request;
    let all = [one; AT_ONCE as usize];
    let mut events = [[0u64; 4]; AT_ONCE as usize];
    while count > 0 {
        let part = count.min(AT_ONCE);
        let list: *const *mut Request = all.as_ptr();
        // SAFETY: the kernel reads `part` requests, which read nothing.
        let made = unsafe { libc::syscall(libc::SYS_io_submit, context, u64::from(part), list) };
        let mut done = Errno::result(made).because(why)?;
        count -= done as u32;
        while takes && done > 0 {
            let (to, none): (*mut [u64; 4], u64) = (events.as_mut_ptr(), 0);
            // SAFETY: there is room for so many events.
            let got = unsafe { libc::syscall(libc::SYS_io_getevents, context, 1, done, to, none) };
            done -= Errno::result(got).because(why)?;
        }
    }
    Ok(())
}
