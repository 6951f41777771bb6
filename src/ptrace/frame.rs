// SPDX-License-Identifier: LGPL-2.1-only
//! The signal frame through which a thread enters its program.
//!
//! rt_sigreturn(2) loads the general registers, the extended state, the mask and the alternate
//! stack in one step from a struct rt_sigframe (arch/x86/include/asm/sigframe.h). The extended
//! state is in the layout that the kernel itself writes on the stack (struct _fpstate_64 with
//! FP_XSTATE_MAGIC1 and 2, arch/x86/include/uapi/asm/sigcontext.h).

use super::regs::{Regs, USER_CS};
use nix::libc;
use std::arch::x86_64::__cpuid_count;
use std::mem::offset_of;
use std::sync::OnceLock;
use zerocopy::IntoBytes;

const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;
/// FP_XSTATE_MAGIC1.
pub(crate) const MAGIC1: u32 = 0x4650_5853;
/// FP_XSTATE_MAGIC2.
pub(crate) const MAGIC2: u32 = 0x4650_5845;
/// Bytes of the second.
pub(crate) const TAIL: usize = 4;
/// Offset of the kernel's software-reserved bytes in the legacy area.
pub(crate) const SW_RESERVED: usize = 464;
/// Offset of the stack pointer in a frame.
pub(crate) const RSP: usize = 168;
/// Offset of the address of the extended state in a frame.
pub(crate) const FPSTATE: usize = 232;
/// Offset of the signal mask in a frame.
const MASK: usize = 304;
/// Bytes of the frame before the extended state: return address, ucontext, siginfo.
const FRAME_HEAD: usize = 8 + 304 + 128;
/// Where the extended state begins: the next multiple of 64.
pub(crate) const XSTATE: usize = FRAME_HEAD.next_multiple_of(64);

// libc's ucontext_t is what lies behind the frame's return address.
const _: () = {
    assert!(
        8 + offset_of!(libc::ucontext_t, uc_mcontext.gregs) + 8 * libc::REG_RSP as usize == RSP
    );
    let registers = 8 + offset_of!(libc::ucontext_t, uc_mcontext.gregs);
    assert!(registers + size_of_val(&[0u64; 23]) == FPSTATE);
    assert!(8 + offset_of!(libc::ucontext_t, uc_sigmask) == MASK);
};

/// Legacy area (FXSAVE).
pub(crate) const LEGACY: usize = 512;
/// Legacy area and XSAVE header.
pub(crate) const HEAD: usize = LEGACY + 64;
/// Where ptrace(2) and we put the mask of the components that an area has room for
/// (arch/x86/include/asm/fpu/xstate.h, XSTATE_BV is behind it).
pub(crate) const COMPONENTS: usize = 464;
/// Bits of x87 and SSE, which are in the legacy area.
pub(crate) const BASE: u64 = 3;
/// The component of the protection keys' rights.
pub(crate) const PKRU: u32 = 9;

/// An alternate stack that rt_sigreturn(2) refuses, so that the thread's stays as it is.
pub(crate) const SAME_STACK: [u64; 3] = [0, 0xff, 0];

/// Where struct sigcontext begins in a frame.
const CONTEXT: usize = 48;
/// The registers in the order of struct sigcontext, by their offset in [`Regs`].
const ORDER: [usize; 18] = [
    offset_of!(Regs, r8),
    offset_of!(Regs, r9),
    offset_of!(Regs, r10),
    offset_of!(Regs, r11),
    offset_of!(Regs, r12),
    offset_of!(Regs, r13),
    offset_of!(Regs, r14),
    offset_of!(Regs, r15),
    offset_of!(Regs, rdi),
    offset_of!(Regs, rsi),
    offset_of!(Regs, rbp),
    offset_of!(Regs, rbx),
    offset_of!(Regs, rdx),
    offset_of!(Regs, rax),
    offset_of!(Regs, rcx),
    offset_of!(Regs, rsp),
    offset_of!(Regs, rip),
    offset_of!(Regs, eflags),
];

/// Where in a frame the register is that is at an offset in [`Regs`].
pub(crate) fn offset(register: usize) -> Option<usize> {
    ORDER.iter().position(|r| *r == register).map(|i| CONTEXT + 8 * i)
}

/// The registers in the frame with which `memory` begins; others are 0.
pub(crate) fn registers(memory: &[u8]) -> Option<Regs> {
    let mut regs = Regs::default();
    for (at, register) in (CONTEXT..).step_by(8).zip(ORDER) {
        let value = memory.get(at..at + 8)?;
        regs.as_mut_bytes()[register..register + 8].copy_from_slice(value);
    }
    Some(regs)
}

/// What a frame is made of.
pub(crate) struct Frame<'a> {
    /// Registers.
    pub regs: &'a Regs,
    /// Extended state in this machine's layout.
    pub xstate: &'a [u8],
    /// Signal mask.
    pub mask: u64,
    /// Alternate stack: address, flags, size.
    pub altstack: [u64; 3],
}

impl Frame<'_> {
    /// The bytes of the frame for the address `at`, a multiple of 64.
    pub(crate) fn bytes(&self, at: u64) -> Vec<u8> {
        let xstate = self.xstate_bytes();
        let mut frame = vec![0; XSTATE];
        for (at, register) in (CONTEXT..).step_by(8).zip(ORDER) {
            let value = &self.regs.as_bytes()[register..register + 8];
            frame[at..at + 8].copy_from_slice(value);
        }
        let mut put = |offset: usize, value: u64| {
            frame[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        };
        put(8, UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS);
        put(24, self.altstack[0]);
        put(32, self.altstack[1]);
        put(40, self.altstack[2]);
        // cs, gs, fs, ss as 16-bit fields.
        put(192, USER_CS | 0x2b << 48);
        put(FPSTATE, if xstate.is_empty() { 0 } else { at + XSTATE as u64 });
        put(MASK, self.mask);
        frame.extend_from_slice(&xstate);
        frame
    }

    /// The extended state up to the last component that is in use. An area that is larger than the thread's own
    /// would be taken for one without extended state (arch/x86/kernel/fpu/signal.c, check_xstate_in_sigframe), and
    /// ptrace(2) gives what the largest thread could have.
    fn xstate_bytes(&self) -> Vec<u8> {
        if self.xstate.len() < HEAD {
            // Without XSAVE there is only the legacy area, and nothing about it is said in it.
            return self.xstate.get(..LEGACY).unwrap_or_default().to_vec();
        }
        let mut area = self.xstate.to_vec();
        let used = in_use(&area) | key_rights(&area);
        area[LEGACY..LEGACY + 8].copy_from_slice(&used.to_le_bytes());
        area.truncate(end(used));
        sealed(area, used | BASE)
    }
}

/// The components that are not in their initial state.
pub(crate) fn in_use(area: &[u8]) -> u64 {
    let word = area.get(LEGACY..LEGACY + 8).and_then(|b| b.try_into().ok());
    word.map_or(0, u64::from_le_bytes)
}

/// The bit of [`PKRU`] where its value is not the initial one: the kernel writes the value by itself, and not always the
/// bit (arch/x86/kernel/fpu/xstate.c, copy_xstate_to_uabi_buf).
fn key_rights(area: &[u8]) -> u64 {
    let mut mask = [0; 8];
    mask.copy_from_slice(&area[COMPONENTS..COMPONENTS + 8]);
    if u64::from_le_bytes(mask) >> PKRU & 1 == 0 {
        return 0;
    }
    let (at, len) = place(PKRU);
    let rights = area.get(at..at + len).unwrap_or_default();
    u64::from(rights.iter().any(|b| *b != 0)) << PKRU
}

/// Offset and length of a component in a non-compacted area of this machine. Each is asked for once: in a virtual machine
/// CPUID takes longer than all the rest that is done for a thread's frame.
fn place(component: u32) -> (usize, usize) {
    static KNOWN: [OnceLock<(usize, usize)>; 64] = [const { OnceLock::new() }; 64];
    let ask = || {
        let leaf = __cpuid_count(0xd, component);
        (leaf.ebx as usize, leaf.eax as usize)
    };
    KNOWN.get(component as usize).map_or_else(ask, |known| *known.get_or_init(ask))
}

/// Bytes of a non-compacted area of this machine with some of the components.
fn end(components: u64) -> usize {
    let used = (2..63).filter(|i| components >> i & 1 != 0).map(place);
    used.map(|(at, len)| at + len).max().unwrap_or(0).max(HEAD)
}

/// Puts what the kernel looks at into an area that holds some components, and behind it.
pub(crate) fn sealed(mut area: Vec<u8>, components: u64) -> Vec<u8> {
    let size = area.len() as u32;
    area[LEGACY + 8..HEAD].fill(0);
    let sw = &mut area[SW_RESERVED..LEGACY];
    sw.fill(0);
    sw[..4].copy_from_slice(&MAGIC1.to_le_bytes());
    sw[4..8].copy_from_slice(&(size + TAIL as u32).to_le_bytes());
    sw[8..16].copy_from_slice(&components.to_le_bytes());
    sw[16..20].copy_from_slice(&size.to_le_bytes());
    area.extend_from_slice(&MAGIC2.to_le_bytes());
    area
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_end_with_what_is_in_use() {
        let mut xstate = vec![0; 16384];
        xstate[LEGACY] = 3;
        let regs = Regs { rsp: 0x1234, ..Regs::default() };
        let frame = Frame { regs: &regs, xstate: &xstate, mask: 0, altstack: SAME_STACK };
        assert_eq!(frame.bytes(0x1000).len(), XSTATE + HEAD + TAIL);
        let legacy = Frame { xstate: &xstate[..LEGACY], ..frame };
        assert_eq!(legacy.bytes(0x1000).len(), XSTATE + LEGACY);
    }
}
