// SPDX-License-Identifier: LGPL-2.1-only
//! Filters of system calls (seccomp(2)) as a tracer reads them, and what they say to a call.

use super::raw;
use crate::proc::Tid;
use crate::proc::forebear::shape;
use nix::errno::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

const ALLOW: u32 = 0x7fff_0000;
const LOG: u32 = 0x7ffc_0000;
const USER_NOTIF: u32 = 0x7fc0_0000;
/// Without the data that goes with it (SECCOMP_RET_ACTION_FULL).
const ACTION: u32 = 0xffff_0000;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Bytes of struct seccomp_data.
const DATA: u32 = 64;

/// The most instructions that a filter has (BPF_MAXINSNS).
const MOST: usize = 4096;

/// struct sock_filter (linux/filter.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Instruction {
    code: u16,
    yes: u8,
    no: u8,
    k: u32,
}

const _: () = assert!(size_of::<Instruction>() == 8);

/// One filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Its program.
    pub(crate) program: Vec<Instruction>,
    /// What it does not allow is logged (SECCOMP_FILTER_FLAG_LOG).
    pub(crate) logs: bool,
}

/// A system call as a filter sees it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Call {
    pub(crate) number: i64,
    /// Where it is made.
    pub(crate) at: u64,
    pub(crate) arguments: [u64; 6],
}

/// The filters of a stopped thread, the first installed first.
///
/// # Errors
/// EACCES: we may not look (CAP_SYS_ADMIN), or have filters ourselves; EMEDIUMTYPE: one is no classic BPF program.
pub(super) fn of(tid: Tid) -> Result<Vec<Filter>, Errno> {
    let mut found = Vec::new();
    loop {
        let mut program = [Instruction::default(); MOST];
        match filter(tid, found.len(), program.as_mut_bytes()) {
            Ok(len) => {
                let program = program.into_iter().take(len).collect();
                found.push(Filter { program, logs: logs(tid, found.len()) });
            }
            Err(Errno::ENOENT) => return Ok(found),
            Err(e) => return Err(e),
        }
    }
}

/// PTRACE_SECCOMP_GET_FILTER: fills in a filter, by number from the first that was installed; how many instructions it has.
fn filter(tid: Tid, index: usize, buffer: &mut [u8]) -> Result<usize, Errno> {
    const REQUEST: u32 = 0x420c;
    raw::transfer(REQUEST, tid, index as u64, shape::OUT, buffer).map(|len| len as usize)
}

/// PTRACE_SECCOMP_GET_METADATA (Linux 4.16): whether a filter has SECCOMP_FILTER_FLAG_LOG.
fn logs(tid: Tid, index: usize) -> bool {
    const REQUEST: u32 = 0x420d;
    const LOG: u64 = 2;
    // struct seccomp_metadata: which, flags.
    let mut data = [index as u64, 0];
    let len = size_of_val(&data) as u64;
    let told = raw::transfer(REQUEST, tid, len, shape::IN | shape::OUT, data.as_mut_bytes());
    told.is_ok() && data[1] & LOG != 0
}

impl Filter {
    /// One from the bytes of its program.
    pub(crate) fn from_bytes(program: &[u8]) -> Self {
        let lines = program.chunks_exact(size_of::<Instruction>());
        let program = lines.filter_map(|line| Instruction::read_from_bytes(line).ok()).collect();
        Self { program, logs: false }
    }

    /// Whether it leaves calls to another process (SECCOMP_RET_USER_NOTIF).
    pub(crate) fn asks_others(&self) -> bool {
        let asks = |it: &Instruction| it.code == 6 && it.k & ACTION == USER_NOTIF;
        self.program.iter().any(asks)
    }
}

/// Whether filters let a thread make a call.
pub(crate) fn allow(filters: &[Filter], call: &Call) -> bool {
    let mut data = [0u32; DATA as usize / 4];
    (data[0], data[1]) = (call.number as u32, AUDIT_ARCH_X86_64);
    let words = std::iter::once(&call.at).chain(&call.arguments);
    let halves = words.flat_map(|word| [*word as u32, (*word >> 32) as u32]);
    data[2..].iter_mut().zip(halves).for_each(|(to, half)| *to = half);
    filters.iter().all(|filter| matches!(verdict(&filter.program, &data) & ACTION, ALLOW | LOG))
}

/// Runs a program, which the kernel has checked: it goes forward only, and reads nothing but aligned words.
fn verdict(program: &[Instruction], data: &[u32]) -> u32 {
    let (mut a, mut x, mut memory, mut next) = (0u32, 0u32, [0u32; 16], 0usize);
    while let Some(&Instruction { code, yes, no, k }) = program.get(next) {
        next += 1;
        let operand = if code & 8 != 0 { x } else { k };
        let cell = (k & 15) as usize;
        let loaded = match code & 0xe0 {
            0x20 => data.get(k as usize / 4).copied().unwrap_or(0),
            0x60 => memory[cell],
            0x80 => DATA,
            _ => k,
        };
        match code & 7 {
            0 => a = loaded,
            1 => x = loaded,
            2 => memory[cell] = a,
            3 => memory[cell] = x,
            4 => match compute(code & 0xf0, a, operand) {
                Some(result) => a = result,
                None => return 0,
            },
            5 => {
                let taken = match code & 0xf0 {
                    0 => {
                        next += k as usize;
                        continue;
                    }
                    0x10 => a == operand,
                    0x20 => a > operand,
                    0x30 => a >= operand,
                    _ => a & operand != 0,
                };
                next += usize::from(if taken { yes } else { no });
            }
            6 if code & 0x10 != 0 => return a,
            6 => return operand,
            _ if code & 0x80 != 0 => a = x,
            _ => x = a,
        }
    }
    0
}

/// None: division by zero, which ends a program with 0.
fn compute(operation: u16, a: u32, operand: u32) -> Option<u32> {
    Some(match operation {
        0 => a.wrapping_add(operand),
        0x10 => a.wrapping_sub(operand),
        0x20 => a.wrapping_mul(operand),
        0x30 => a.checked_div(operand)?,
        0x40 => a | operand,
        0x50 => a & operand,
        0x60 => a.wrapping_shl(operand),
        0x70 => a.wrapping_shr(operand),
        0x80 => a.wrapping_neg(),
        0x90 => a.checked_rem(operand)?,
        _ => a ^ operand,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn line(code: u16, yes: u8, no: u8, k: u32) -> Instruction {
        Instruction { code, yes, no, k }
    }

    #[test]
    fn verdicts_are_the_kernels() {
        // Allows read(2), and write(2) to descriptors below 3 whose buffer has an even address.
        let program = vec![
            line(0x20, 0, 0, 0),
            line(0x15, 0, 1, 0),
            line(0x06, 0, 0, ALLOW),
            line(0x15, 0, 6, 1),
            line(0x20, 0, 0, 16),
            line(0x35, 4, 0, 3),
            line(0x20, 0, 0, 24),
            line(0x54, 0, 0, 1),
            line(0x15, 0, 1, 0),
            line(0x06, 0, 0, LOG | 7),
            line(0x06, 0, 0, 0x0005_0001),
        ];
        let filters = [Filter { program, logs: false }];
        let made = |number, arguments| Call { number, at: 0, arguments };
        assert!(allow(&filters, &made(0, [9; 6])));
        assert!(allow(&filters, &made(1, [2, 8, 0, 0, 0, 0])));
        assert!(!allow(&filters, &made(1, [2, 9, 0, 0, 0, 0])));
        assert!(!allow(&filters, &made(1, [3, 8, 0, 0, 0, 0])));
        assert!(!allow(&filters, &made(2, [0; 6])));
        assert!(!filters[0].asks_others());
        assert!(allow(&[], &made(2, [0; 6])));
    }
}
