// SPDX-License-Identifier: LGPL-2.1-only
//! General registers and extended state of a stopped thread.

use super::raw;
use crate::proc::Tid;
use nix::errno::Errno;
use std::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const NT_PRSTATUS: usize = 1;
const NT_PRFPREG: usize = 2;
const NT_X86_XSTATE: usize = 0x202;

/// Largest xstate of any x86 (AMX included), with room.
const XSTATE_MAX: usize = 16384;

/// struct user_regs_struct of x86-64 (sys/user.h).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[allow(missing_docs)]
pub(crate) struct Regs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

/// Holds the place of a register against libc's struct.
macro_rules! same_place {
    ($($register:ident)*) => {
        const _: () = assert!(size_of::<Regs>() == size_of::<nix::libc::user_regs_struct>());
        $(const _: () = assert!(
            offset_of!(Regs, $register) == offset_of!(nix::libc::user_regs_struct, $register)
        );)*
    };
}
same_place! {
    r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss
    fs_base gs_base ds es fs gs
}

/// Code segment of 64-bit user code.
pub(crate) const USER_CS: u64 = 0x33;

impl Regs {
    /// Reads the registers of a stopped thread.
    pub(crate) fn get(tid: Tid) -> Result<Self, Errno> {
        let mut regs = Self::default();
        let len = raw::get_regset(tid, NT_PRSTATUS, regs.as_mut_bytes())?;
        // A thread of 32-bit code has a shorter register set.
        if len == size_of::<Self>() { Ok(regs) } else { Err(Errno::ENOEXEC) }
    }

    /// Writes the registers of a stopped thread.
    pub(crate) fn set(&self, tid: Tid) -> Result<(), Errno> {
        raw::set_regset(tid, NT_PRSTATUS, self.as_bytes())
    }
}

/// Extended state (x87, SSE, AVX, …, PKRU) in the non-compacted XSAVE layout; 512 bytes as FXSAVE
/// gives them on a machine without XSAVE.
pub(crate) fn xstate(tid: Tid) -> Result<Vec<u8>, Errno> {
    // What most machines have, without AMX.
    for room in [XSTATE_MAX / 4, XSTATE_MAX] {
        let mut buffer = vec![0; room];
        let len = match raw::get_regset(tid, NT_X86_XSTATE, &mut buffer) {
            Err(Errno::ENODEV) => raw::get_regset(tid, NT_PRFPREG, &mut buffer)?,
            result => result?,
        };
        if len < room || room == XSTATE_MAX {
            buffer.truncate(len);
            return Ok(buffer);
        }
    }
    Err(Errno::EINVAL)
}
