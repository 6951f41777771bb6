// SPDX-License-Identifier: LGPL-2.1-only
//! The clocks of a process, which may be in another time namespace than we (time_namespaces(7)).

use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

use nix::time::{ClockId, clock_getres, clock_gettime};

use super::id::Pid;
use super::process::Process;
use super::text::{decimal, lines, words};
use crate::error::{Because, Result};

const SECOND: i64 = 1_000_000_000;

/// The clocks as a process sees them, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clocks {
    /// CLOCK_REALTIME.
    pub realtime: u64,
    /// CLOCK_MONOTONIC and CLOCK_BOOTTIME.
    pub since_boot: [u64; 2],
    /// A number that tells them from others: of another boot or machine (random(4), boot_id), or of another time
    /// namespace; 0 when it cannot be read.
    pub boot: u64,
}

impl Process {
    /// Its clocks now.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn clocks(&self) -> Result<Clocks> {
        Clocks::shifted(self.shifts())
    }

    /// By how many nanoseconds the time namespaces of this process, and its own, shift CLOCK_MONOTONIC and CLOCK_BOOTTIME.
    pub fn shifts(&self) -> [[i64; 2]; 2] {
        [own_offsets(), self.clock_offsets()]
    }

    /// By how many nanoseconds its time namespace shifts CLOCK_MONOTONIC and CLOCK_BOOTTIME.
    pub fn clock_offsets(&self) -> [i64; 2] {
        parse(&self.file("timens_offsets").unwrap_or_default())
    }
}

/// The CPU time of a process in nanoseconds: of user and kernel in ticks, of the user, and of the scheduler's account, as
/// CPUCLOCK_PROF, CPUCLOCK_VIRT and CPUCLOCK_SCHED number them.
pub(crate) fn spent(pid: Pid) -> [i64; 3] {
    [0, 1, 2].map(|kind| spent_by(pid, kind))
}

/// The last of these.
pub(crate) fn used(pid: Pid) -> i64 {
    spent_by(pid, 2)
}

fn spent_by(pid: Pid, kind: i32) -> i64 {
    let time = clock_gettime(ClockId::from_raw(!pid.get() << 3 | kind));
    time.map_or(0, |time| time.tv_sec() * SECOND + time.tv_nsec())
}

/// Nanoseconds of a tick of the kernel's clock.
pub(crate) fn tick() -> u64 {
    let tick = clock_getres(ClockId::CLOCK_REALTIME_COARSE);
    tick.map_or(0, |tick| tick.tv_nsec().cast_unsigned())
}

impl Clocks {
    /// Those of a process with such [shifts](Process::shifts) now.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn shifted([own, theirs]: [[i64; 2]; 2]) -> Result<Self> {
        let now = |clock| -> Result<u64> {
            let time = clock_gettime(clock).because(|| "cannot read a clock")?;
            Ok(time.tv_sec() as u64 * SECOND as u64 + time.tv_nsec() as u64)
        };
        let seen = |clock, i: usize| -> Result<u64> {
            Ok(now(clock)?.saturating_add_signed(theirs[i].saturating_sub(own[i])))
        };
        Ok(Self {
            realtime: now(ClockId::CLOCK_REALTIME)?,
            since_boot: [seen(ClockId::CLOCK_MONOTONIC, 0)?, seen(ClockId::CLOCK_BOOTTIME, 1)?],
            boot: boot(theirs),
        })
    }
}

fn boot(offsets: [i64; 2]) -> u64 {
    static ID: OnceLock<Vec<u8>> = OnceLock::new();
    let read = || fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mut id = ID.get_or_init(read).clone();
    if id.is_empty() {
        return 0;
    }
    for offset in offsets {
        id.extend_from_slice(&offset.to_le_bytes());
    }
    xxhash_rust::xxh3::xxh3_64(&id)
}

fn own_offsets() -> [i64; 2] {
    parse(&super::slurp("/proc/self/timens_offsets").unwrap_or_default())
}

/// By how many nanoseconds a process's CLOCK_BOOTTIME is ahead of ours.
pub fn boot_skew(process: &Process) -> i64 {
    process.clock_offsets()[1].saturating_sub(own_offsets()[1])
}

/// For how many seconds the machine has been up, as our time namespace has it.
pub(crate) fn uptime() -> Option<u64> {
    seconds(&super::slurp("/proc/uptime").ok()?)
}

/// Nanoseconds of a clock tick (USER_HZ), the unit of [`super::stat::Stat::starttime`].
pub(crate) const TICK: i64 = 10_000_000;

/// For how many ticks the machine has been up.
pub(crate) fn ticks() -> u64 {
    (up().as_nanos() / TICK.cast_unsigned() as u128) as u64
}

/// For how long the machine has been up, also while it was suspended.
pub(crate) fn up() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// "35.72 270.31": up, and idle.
fn seconds(text: &[u8]) -> Option<u64> {
    decimal(text.split(|byte| *byte == b'.').next()?).ok()
}

/// "monotonic           -86400         0": seconds and nanoseconds.
fn parse(text: &[u8]) -> [i64; 2] {
    let offset = |name: &[u8]| {
        let line = lines(text).find_map(|line| line.strip_prefix(name))?;
        let mut numbers = words(line).map(|word| decimal::<i64>(word).ok());
        numbers.next()??.checked_mul(SECOND)?.checked_add(numbers.next()??)
    };
    [&b"monotonic"[..], b"boottime"].map(|name| offset(name).unwrap_or(0))
}

/// See [`super::parse_anything`].
pub(super) fn parse_anything(bytes: &[u8]) {
    let _ = parse(bytes);
    let _ = seconds(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_seconds_and_nanoseconds() {
        let text = b"monotonic         -5         7\nboottime           3         0\n";
        assert_eq!(parse(text), [-5 * SECOND + 7, 3 * SECOND]);
        assert_eq!(parse(b"monotonic 9223372036854775807 0\nboottime x 0"), [0, 0]);
        assert_eq!(parse(b""), [0, 0]);
    }

    #[test]
    fn seconds_stand_before_the_point() {
        assert_eq!(seconds(b"35.72 270.31\n"), Some(35));
        assert_eq!((seconds(b""), seconds(b"up.1")), (None, None));
        assert!(uptime() > Some(0));
    }

    #[test]
    fn our_own_are_those_that_we_read() {
        let own = Process::own().unwrap();
        let before = own.clocks().unwrap();
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
        let after = own.clocks().unwrap();
        let now = now.tv_sec() as u64 * SECOND as u64 + now.tv_nsec() as u64;
        assert!(before.since_boot[0] <= now && now <= after.since_boot[0]);
        assert_eq!(before.boot, after.boot);
    }
}
