// SPDX-License-Identifier: LGPL-2.1-only
//! Restartable sequences (rseq(2)): where a thread's area is, and how long areas are.

use crate::error::{Because, Result};
use crate::proc::{self, Process};
use crate::ptrace::call::Caller;
use crate::ptrace::lend::Desk;
use crate::ptrace::memory::Memory;
use crate::ptrace::raw;
use crate::ptrace::thread::StoppedThread;
use nix::errno::Errno;
use nix::libc;

/// The rseq registration; before Linux 5.13 only a search can find it.
pub(super) fn registered(
    thread: &mut StoppedThread,
    memory: &Memory,
    desk: &Desk,
) -> Result<raw::RseqConfiguration> {
    match raw::rseq_configuration(thread.tid) {
        Ok(configuration) => Ok(configuration),
        Err(Errno::EIO | Errno::EINVAL) => search_rseq(thread, memory, desk),
        Err(e) => Err(e).because(|| format!("cannot read the rseq area of thread {}", thread.tid)),
    }
}

/// Looks for the rseq area near the thread pointer, where glibc has it: unregistering with a wrong
/// signature changes nothing and answers EPERM only for the right address (kernel/rseq.c).
fn search_rseq(
    thread: &mut StoppedThread,
    memory: &Memory,
    desk: &Desk,
) -> Result<raw::RseqConfiguration> {
    const SIZE: u32 = 32;
    const SIGNATURE: u32 = 0x5305_3053;
    const UNREGISTER: u64 = 1;
    let base = thread.regs.fs_base & !31;
    let mut caller = Caller::new(thread, memory, desk)?;
    for offset in (0..0x1000).step_by(32) {
        for pointer in [base.wrapping_add(offset), base.wrapping_sub(offset)] {
            let wrong = u64::from(!SIGNATURE);
            let args = [pointer, u64::from(SIZE), UNREGISTER, wrong];
            match caller.call(libc::SYS_rseq, &args)? {
                result if result == -i64::from(libc::EPERM) => {
                    let mut found = raw::RseqConfiguration::default();
                    (found.pointer, found.size, found.signature) = (pointer, SIZE, SIGNATURE);
                    return Ok(found);
                }
                result if result == -i64::from(libc::ENOSYS) => return Ok(Default::default()),
                _ => {}
            }
        }
    }
    Ok(Default::default())
}

/// The length that this kernel takes for an area registered with `len`: before Linux 6.3 only
/// [`RSEQ_SIZE`], then that or anything from its own `feature` size on (kernel/rseq.c).
pub(super) fn rseq_len(len: u64, feature: u64) -> u64 {
    if feature != 0 && len >= feature { len } else { RSEQ_SIZE }
}

/// Bytes of the first struct rseq; every area has them.
const RSEQ_SIZE: u64 = 32;

/// Bytes of struct rseq that this kernel fills, 0 before Linux 6.3.
pub(super) fn feature_size() -> u64 {
    const AT_RSEQ_FEATURE_SIZE: u64 = 27;
    let auxv = Process::own().and_then(|own| own.auxv()).unwrap_or_default();
    proc::auxv_value(&auxv, AT_RSEQ_FEATURE_SIZE).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_rseq_areas() {
        assert_eq!(rseq_len(32, 0), 32);
        assert_eq!(rseq_len(40, 0), 32);
        assert_eq!(rseq_len(40, 28), 40);
        assert_eq!(rseq_len(32, 40), 32);
        assert_eq!(rseq_len(36, 40), 32);
    }
}
