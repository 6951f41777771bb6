// SPDX-License-Identifier: LGPL-2.1-only
//! The resource limits of a process: /proc/PID/limits.
//!
//! Not prlimit(2): that asks for more rights (the file is open to everybody), and nix has no
//! safe wrapper that takes a pid.

use super::parsed;
use super::process::Process;
use super::text::{decimal, lines, words};
use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};

/// Soft and hard limit; `u64::MAX` is RLIM_INFINITY.
pub(crate) type Limit = (u64, u64);

/// The names that proc_pid_limits (fs/proc/base.c) gives the limits, in order of their RLIMIT_
/// numbers.
const NAMES: [&str; 16] = [
    "Max cpu time",
    "Max file size",
    "Max data size",
    "Max stack size",
    "Max core file size",
    "Max resident set",
    "Max processes",
    "Max open files",
    "Max locked memory",
    "Max address space",
    "Max file locks",
    "Max pending signals",
    "Max msgqueue size",
    "Max nice priority",
    "Max realtime priority",
    "Max realtime timeout",
];

/// All resources, at the index of their numbers.
const RESOURCES: [Resource; 16] = {
    use Resource::*;
    [
        RLIMIT_CPU,
        RLIMIT_FSIZE,
        RLIMIT_DATA,
        RLIMIT_STACK,
        RLIMIT_CORE,
        RLIMIT_RSS,
        RLIMIT_NPROC,
        RLIMIT_NOFILE,
        RLIMIT_MEMLOCK,
        RLIMIT_AS,
        RLIMIT_LOCKS,
        RLIMIT_SIGPENDING,
        RLIMIT_MSGQUEUE,
        RLIMIT_NICE,
        RLIMIT_RTPRIO,
        RLIMIT_RTTIME,
    ]
};

impl Process {
    /// All limits of process `pid`, at the index of their RLIMIT_ numbers.
    ///
    /// # Errors
    /// The process is gone.
    pub fn limits(&self) -> Result<[Limit; 16]> {
        let text = self.file("limits")?;
        parsed(parse(&text), || self.called("limits"))
    }
}

/// What proc_pid_limits calls the limit of this number.
pub(crate) fn name(number: usize) -> &'static str {
    NAMES.get(number).unwrap_or(&"")
}

/// Sets a limit of this process, by its number: soft and hard.
///
/// # Errors
/// Those of setrlimit(2).
pub(crate) fn set(number: usize, (soft, hard): Limit) -> nix::Result<()> {
    setrlimit(*RESOURCES.get(number).ok_or(Errno::EINVAL)?, soft, hard)
}

fn parse(text: &[u8]) -> Result<[Limit; 16]> {
    let mut limits = [(0, 0); 16];
    for (limit, name) in limits.iter_mut().zip(NAMES) {
        let values = lines(text).find_map(|l| l.strip_prefix(name.as_bytes())?.strip_prefix(b" "));
        let mut values = words(values.ok_or_else(|| Error::new(format!("it has no {name:?}")))?);
        let mut next = || match values.next() {
            Some(b"unlimited") => Ok(u64::MAX),
            Some(number) => decimal(number),
            None => Err(Error::new(format!("{name:?} has no two values"))),
        };
        *limit = (next()?, next()?);
    }
    Ok(limits)
}

/// See [`super::parse_anything`].
pub(super) fn parse_anything(bytes: &[u8]) {
    let _ = parse(bytes);
}

#[cfg(test)]
mod tests {
    use super::super::tests::we;
    use super::*;
    use nix::sys::resource::{Resource, getrlimit};

    const LIMITS: &str = "\
Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              10                   unlimited            seconds   
Max file size             unlimited            unlimited            bytes     
Max data size             unlimited            unlimited            bytes     
Max stack size            8388608              unlimited            bytes     
Max core file size        0                    unlimited            bytes     
Max resident set          unlimited            unlimited            bytes     
Max processes             96365                96366                processes 
Max open files            20000                20001                files     
Max locked memory         8388608              8388608              bytes     
Max address space         18446744073709551614 unlimited            bytes     
Max file locks            unlimited            unlimited            locks     
Max pending signals       96365                96365                signals   
Max msgqueue size         819200               819200               bytes     
Max nice priority         0                    0                    
Max realtime priority     0                    99                   
Max realtime timeout      unlimited            unlimited            us        
";

    #[test]
    fn every_limit() {
        let limits = parse(LIMITS.as_bytes()).unwrap();
        assert_eq!(limits[Resource::RLIMIT_CPU as usize], (10, u64::MAX));
        assert_eq!(limits[Resource::RLIMIT_STACK as usize], (8_388_608, u64::MAX));
        assert_eq!(limits[Resource::RLIMIT_NPROC as usize], (96365, 96366));
        assert_eq!(limits[Resource::RLIMIT_NOFILE as usize], (20000, 20001));
        assert_eq!(limits[Resource::RLIMIT_AS as usize], (u64::MAX - 1, u64::MAX));
        assert_eq!(limits[Resource::RLIMIT_RTPRIO as usize], (0, 99));
        assert_eq!(limits[15], (u64::MAX, u64::MAX));
    }

    #[test]
    fn a_missing_limit_is_named() {
        let text = LIMITS.replace("Max file locks ", "Max file looks ");
        let sentence = parse(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(sentence, "it has no \"Max file locks\"");
        let text = LIMITS.replace("8388608              bytes", "");
        assert!(parse(text.as_bytes()).is_err());
    }

    #[test]
    fn own_limits_are_those_of_getrlimit() {
        let limits = we().limits().unwrap();
        for (number, resource) in RESOURCES.into_iter().enumerate() {
            assert_eq!(number, resource as usize);
            assert_eq!(limits[resource as usize], getrlimit(resource).unwrap(), "{resource:?}");
        }
    }
}
