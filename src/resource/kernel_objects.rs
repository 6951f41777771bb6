//! Descriptors of small kernel objects: eventfd(2), timerfd_create(2), signalfd(2).
//!
//! # Safety
//! The system calls here take numbers, or pointers to values of our own.
#![allow(unsafe_code)]

use crate::error::{Because, Result};
use crate::proc::fds::Fd;
use ckpt_abi::image::{Descriptor, TimerDescriptor};
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use zerocopy::FromZeros;

const SECOND: u64 = 1_000_000_000;

fn owned(result: i64) -> nix::Result<OwnedFd> {
    let fd = Errno::result(result)? as i32;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Count and semaphore flag of an eventfd.
pub fn save_event(fd: &Fd, record: &mut Descriptor) {
    let hex = |key| fd.extra(key).and_then(|v| u64::from_str_radix(v.trim(), 16).ok());
    record.value = hex("eventfd-count").unwrap_or(0);
    // Only newer kernels say whether it is a semaphore (Linux 6.5).
    record.extra = hex("eventfd-semaphore").unwrap_or(0) as u32;
}

/// Makes an eventfd; a count above what eventfd(2) takes is written.
pub fn open_event(record: &Descriptor) -> Result<OwnedFd> {
    let flags = if record.extra != 0 { libc::EFD_SEMAPHORE } else { 0 } | libc::EFD_CLOEXEC;
    // SAFETY: numbers only.
    let result = unsafe { libc::syscall(libc::SYS_eventfd2, 0, flags) };
    let fd = owned(result).because(|| "cannot make an eventfd")?;
    if record.value != 0 {
        nix::unistd::write(&fd, &record.value.to_ne_bytes()).because(|| "cannot set an eventfd")?;
    }
    Ok(fd)
}

/// Mask of a signalfd.
pub fn save_signal(fd: &Fd, record: &mut Descriptor) {
    let mask = fd.extra("sigmask").and_then(|v| u64::from_str_radix(v.trim(), 16).ok());
    record.value = mask.unwrap_or(0);
}

/// Makes a signalfd.
pub fn open_signal(record: &Descriptor) -> Result<OwnedFd> {
    let mask: *const u64 = &record.value;
    // SAFETY: the kernel reads the one word.
    let result = unsafe { libc::syscall(libc::SYS_signalfd4, -1, mask, 8, libc::SFD_CLOEXEC) };
    owned(result).because(|| "cannot make a signalfd")
}

/// State of a timerfd, from its fdinfo.
pub fn save_timer(fd: &Fd) -> TimerDescriptor {
    let number = |key| fd.extra(key).and_then(|v| v.trim().parse::<u64>().ok()).unwrap_or(0);
    let octal = |key| fd.extra(key).and_then(|v| u32::from_str_radix(v.trim(), 8).ok());
    TimerDescriptor {
        clock: number("clockid") as i32,
        // The time is given as what is left, whatever it was set as.
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

/// Makes and arms a timerfd. Expirations that were not read yet need CONFIG_CHECKPOINT_RESTORE. A periodic
/// one that has expired has nothing left until it is read, which arms it again (fs/timerfd.c,
/// timerfd_read); so it expires here.
pub fn open_timer(saved: &TimerDescriptor) -> Result<OwnedFd> {
    const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;
    // SAFETY: numbers only.
    let result = unsafe { libc::syscall(libc::SYS_timerfd_create, saved.clock, libc::TFD_CLOEXEC) };
    let fd = owned(result).because(|| "cannot make a timerfd")?;
    let expired = saved.left == 0 && saved.period != 0 && saved.ticks != 0;
    let left = if expired { 1 } else { saved.left };
    let times = [saved.period / SECOND, saved.period % SECOND, left / SECOND, left % SECOND];
    let times: *const u64 = times.as_ptr();
    let none: *mut u64 = std::ptr::null_mut();
    let number = fd.as_raw_fd();
    // SAFETY: the kernel reads one struct itimerspec.
    let result =
        unsafe { libc::syscall(libc::SYS_timerfd_settime, number, saved.flags, times, none) };
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
    Ok(fd)
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
