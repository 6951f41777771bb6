//! The signal frame through which a restored thread enters its program.
//!
//! rt_sigreturn(2) loads the general registers, the extended state, the mask and the alternate
//! stack in one step from a struct rt_sigframe (arch/x86/include/asm/sigframe.h). The extended
//! state is in the layout that the kernel itself writes on the stack (struct _fpstate_64 with
//! FP_XSTATE_MAGIC1 and 2, arch/x86/include/uapi/asm/sigcontext.h).
//!
//! # Safety
//! The one instruction that needs it reads a register that the CPU was seen to have.
#![allow(unsafe_code)]

use crate::ptrace::regs::{Regs, USER_CS};
use std::arch::x86_64::__cpuid_count;

const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
/// Offset of the kernel's software-reserved bytes in the legacy area.
const SW_RESERVED: usize = 464;
/// Legacy area and XSAVE header.
const XSAVE_MIN: usize = 512 + 64;
/// Bytes of the frame before the extended state: return address, ucontext, siginfo.
const HEAD: usize = 8 + 304 + 128;
/// Where the extended state begins: the next multiple of 64.
pub const XSTATE: usize = HEAD.next_multiple_of(64);

/// User state components that need no permission: everything but AMX tile data (component 18).
const DYNAMIC: u64 = 1 << 18;

/// What a frame is made of.
pub struct Frame<'a> {
    /// Registers.
    pub regs: &'a Regs,
    /// Extended state as ptrace(2) gave it.
    pub xstate: &'a [u8],
    /// Signal mask.
    pub mask: u64,
    /// Alternate stack: address, flags, size.
    pub altstack: [u64; 3],
}

impl Frame<'_> {
    /// The bytes of the frame for the address `at`, a multiple of 64.
    pub fn bytes(&self, at: u64) -> Vec<u8> {
        let xstate = self.xstate_bytes();
        let mut frame = vec![0; XSTATE];
        let mut put = |offset: usize, value: u64| {
            frame[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        };
        let r = self.regs;
        put(8, UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS);
        put(24, self.altstack[0]);
        put(32, self.altstack[1]);
        put(40, self.altstack[2]);
        let context = [
            r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx,
            r.rdx, r.rax, r.rcx, r.rsp, r.rip, r.eflags,
        ];
        for (i, value) in context.iter().enumerate() {
            put(48 + 8 * i, *value);
        }
        // cs, gs, fs, ss as 16-bit fields.
        put(192, USER_CS | 0x2b << 48);
        put(232, if xstate.is_empty() { 0 } else { at + XSTATE as u64 });
        put(304, self.mask);
        frame.extend_from_slice(&xstate);
        frame
    }

    fn xstate_bytes(&self) -> Vec<u8> {
        if self.xstate.len() < 512 {
            return Vec::new();
        }
        let enabled = enabled_components();
        let size = standard_size(enabled);
        if size < XSAVE_MIN || self.xstate.len() < XSAVE_MIN {
            return self.xstate[..512].to_vec();
        }
        let mut area = vec![0; size];
        let known = size.min(self.xstate.len());
        area[..known].copy_from_slice(&self.xstate[..known]);
        let present = u64::from_le_bytes([
            area[512], area[513], area[514], area[515], area[516], area[517], area[518], area[519],
        ]);
        area[512..520].copy_from_slice(&(present & enabled).to_le_bytes());
        area[520..XSAVE_MIN].fill(0);
        let sw = &mut area[SW_RESERVED..512];
        sw.fill(0);
        sw[..4].copy_from_slice(&MAGIC1.to_le_bytes());
        sw[4..8].copy_from_slice(&(size as u32 + 4).to_le_bytes());
        sw[8..16].copy_from_slice(&enabled.to_le_bytes());
        sw[16..20].copy_from_slice(&(size as u32).to_le_bytes());
        area.extend_from_slice(&MAGIC2.to_le_bytes());
        area
    }
}

/// The user state components that this machine's kernel saves in signal frames of a process
/// without AMX permission; 0 without XSAVE.
pub fn enabled_components() -> u64 {
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid_count(1, 0).ecx & OSXSAVE == 0 {
        return 0;
    }
    xgetbv() & !DYNAMIC
}

/// Bytes of the non-compacted XSAVE area that holds `components`.
fn standard_size(components: u64) -> usize {
    if components == 0 {
        return 0;
    }
    let extended = (2..63).filter(|i| components & 1 << i != 0);
    extended
        .map(|i| {
            let leaf = __cpuid_count(0xd, i);
            (leaf.eax + leaf.ebx) as usize
        })
        .max()
        .unwrap_or(0)
        .max(XSAVE_MIN)
}

/// XCR0: the state components that the operating system has enabled.
fn xgetbv() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller saw OSXSAVE in CPUID, so the instruction exists; it only reads.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high,
                        options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}
