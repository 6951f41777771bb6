// SPDX-License-Identifier: LGPL-2.1-only
//! timerfd_create(2).
//!
//! # Safety
//! The system calls here take numbers, or pointers to values of our own.
#![allow(unsafe_code)]

use super::open::owned;
use super::{Content, Kind, Look, Opening, Origin, Restored, Saving};
use crate::error::{Because, Error, Result};
use crate::proc::fds::Fd;
use ckpt_abi::image::{Descriptor, DescriptorKind, TimerDescriptor};
use nix::errno::Errno;
use nix::libc;
use nix::time::{ClockId, clock_gettime};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

pub(super) const KIND: Kind = Kind { recognise, save, open };

const SECOND: u64 = 1_000_000_000;

fn recognise(fd: &Fd, _: &Look<'_>) -> bool {
    fd.target == "anon_inode:[timerfd]"
}

fn save(fd: &Fd, _: &Look<'_>, saving: &mut Saving) -> Result<()> {
    let bytes = state(fd).as_bytes().to_vec();
    saving.record.content = fd.number;
    saving.content = Some(Content { index: fd.number, bytes });
    Ok(())
}

fn open(record: &Descriptor, opening: &mut Opening<'_>) -> Result<Origin> {
    let saved = parse(&opening.content(record)?)?;
    // SAFETY: numbers only.
    let result = unsafe { libc::syscall(libc::SYS_timerfd_create, saved.clock, libc::TFD_CLOEXEC) };
    owned(result).because(|| "cannot make a timerfd").map(Origin::Own)
}

fn parse(bytes: &[u8]) -> Result<TimerDescriptor> {
    TimerDescriptor::read_from_bytes(bytes).map_err(|_| Error::new("a damaged timerfd"))
}

/// Arms all that were opened, now that the time of the program begins to run again; `content` gives what was saved.
///
/// # Errors
/// The image is damaged, or the kernel refuses a timer.
pub(crate) fn arm_all<'a>(
    restored: impl Iterator<Item = &'a Restored>,
    content: impl Fn(u32) -> Result<Vec<u8>>,
) -> Result<()> {
    for Restored { record, origin } in restored {
        if let Origin::Own(fd) = origin
            && super::kind(record) == DescriptorKind::Timer
        {
            arm(fd, &parse(&content(record.content)?)?)?;
        }
    }
    Ok(())
}

/// State of a timerfd, from its fdinfo (proc_pid_fdinfo(5)).
fn state(fd: &Fd) -> TimerDescriptor {
    let number = |key| fd.extra(key).and_then(|v| v.trim().parse::<u64>().ok()).unwrap_or(0);
    let octal = |key| fd.extra(key).and_then(|v| u32::from_str_radix(v.trim(), 8).ok());
    TimerDescriptor {
        clock: number("clockid") as i32,
        // The time is given as what is left, whatever it was set as, but where the kernel needs a moment: `arm`.
        flags: octal("settime flags").unwrap_or(0) & !(libc::TFD_TIMER_ABSTIME as u32),
        left: time(fd.extra("it_value")),
        period: time(fd.extra("it_interval")),
        ticks: number("ticks"),
        ..TimerDescriptor::new_zeroed()
    }
}

/// "(0, 49406829)": seconds and nanoseconds.
fn time(value: Option<&str>) -> u64 {
    let value = value.unwrap_or("").trim().trim_matches(['(', ')']);
    let mut parts = value.split(',').map(|part| part.trim().parse::<u64>().unwrap_or(0));
    parts.next().unwrap_or(0) * SECOND + parts.next().unwrap_or(0)
}

fn moment_now(clock: i32) -> Result<u64> {
    let now = clock_gettime(ClockId::from_raw(clock)).because(|| "cannot read a clock")?;
    Ok(Duration::from(now).as_nanos() as u64)
}

/// Arms a timerfd. Expirations that were not read yet need CONFIG_CHECKPOINT_RESTORE. A periodic
/// one that has expired has nothing left until it is read, which arms it again (fs/timerfd.c,
/// timerfd_read); so it expires here.
fn arm(fd: &OwnedFd, saved: &TimerDescriptor) -> Result<()> {
    const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;
    let expired = saved.left == 0 && saved.period != 0 && saved.ticks != 0;
    let left = if expired { 1 } else { saved.left };
    // Only one that expires at a moment of the clock is cancelled with it (timerfd_create(2)).
    let moment = left != 0 && saved.flags & libc::TFD_TIMER_CANCEL_ON_SET as u32 != 0;
    let flags = saved.flags | if moment { libc::TFD_TIMER_ABSTIME as u32 } else { 0 };
    let now = if moment { moment_now(saved.clock)? } else { 0 };
    let left = left.saturating_add(now);
    let times = [saved.period / SECOND, saved.period % SECOND, left / SECOND, left % SECOND];
    let times: *const u64 = times.as_ptr();
    let none: *mut u64 = std::ptr::null_mut();
    let number = fd.as_raw_fd();
    // SAFETY: the kernel reads one struct itimerspec.
    let result = unsafe { libc::syscall(libc::SYS_timerfd_settime, number, flags, times, none) };
    Errno::result(result).because(|| "cannot arm a timerfd")?;
    if expired {
        let mut poll = libc::pollfd { fd: number, events: libc::POLLIN, revents: 0 };
        // SAFETY: the kernel writes the one struct.
        unsafe { libc::poll(&raw mut poll, 1, 1000) };
    }
    if saved.ticks != 0 {
        let ticks: *const u64 = &saved.ticks;
        // SAFETY: the kernel reads the one word.
        unsafe { libc::syscall(libc::SYS_ioctl, number, TFD_IOC_SET_TICKS, ticks) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_fdinfo() {
        assert_eq!(time(Some("(2, 49406829)")), 2_049_406_829);
        assert_eq!(time(None), 0);
    }
}
