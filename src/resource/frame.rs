//! The signal frame through which a restored thread enters its program.
//!
//! rt_sigreturn(2) loads the general registers, the extended state, the mask and the alternate
//! stack in one step from a struct rt_sigframe (arch/x86/include/asm/sigframe.h). The extended
//! state is in the layout that the kernel itself writes on the stack (struct _fpstate_64 with
//! FP_XSTATE_MAGIC1 and 2, arch/x86/include/uapi/asm/sigcontext.h).

use super::xstate;
use crate::ptrace::regs::{Regs, USER_CS};

const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
/// Offset of the kernel's software-reserved bytes in the legacy area.
const SW_RESERVED: usize = 464;
/// Bytes of the frame before the extended state: return address, ucontext, siginfo.
const HEAD: usize = 8 + 304 + 128;
/// Where the extended state begins: the next multiple of 64.
pub const XSTATE: usize = HEAD.next_multiple_of(64);

/// What a frame is made of.
pub struct Frame<'a> {
    /// Registers.
    pub regs: &'a Regs,
    /// Extended state in this machine's layout ([`xstate::convert`]).
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
        if self.xstate.len() < xstate::HEAD {
            // Without XSAVE there is only the legacy area, and nothing about it is said in it.
            return self.xstate.get(..xstate::LEGACY).unwrap_or_default().to_vec();
        }
        let mut area = self.xstate.to_vec();
        let size = area.len() as u32;
        let enabled = area[xstate::COMPONENTS..xstate::COMPONENTS + 8].to_vec();
        area[xstate::LEGACY + 8..xstate::HEAD].fill(0);
        let sw = &mut area[SW_RESERVED..xstate::LEGACY];
        sw.fill(0);
        sw[..4].copy_from_slice(&MAGIC1.to_le_bytes());
        sw[4..8].copy_from_slice(&(size + 4).to_le_bytes());
        sw[8..16].copy_from_slice(&enabled);
        sw[16..20].copy_from_slice(&size.to_le_bytes());
        area.extend_from_slice(&MAGIC2.to_le_bytes());
        area
    }
}
