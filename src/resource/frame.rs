//! The signal frame through which a restored thread enters its program.
//!
//! rt_sigreturn(2) loads the general registers, the extended state, the mask and the alternate
//! stack in one step from a struct rt_sigframe (arch/x86/include/asm/sigframe.h). The extended
//! state is in the layout that the kernel itself writes on the stack (struct _fpstate_64 with
//! FP_XSTATE_MAGIC1 and 2, arch/x86/include/uapi/asm/sigcontext.h).

use super::xstate::{self, Layout};
use crate::ptrace::regs::{Regs, USER_CS};

const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
/// Bytes of the second.
pub const TAIL: usize = 4;
/// Offset of the kernel's software-reserved bytes in the legacy area.
const SW_RESERVED: usize = 464;
/// Offset of the stack pointer in a frame.
const RSP: usize = 168;
/// Offset of the address of the extended state in a frame.
pub const FPSTATE: usize = 232;
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
        let enabled =
            self.xstate[xstate::COMPONENTS..][..8].try_into().map_or(0, u64::from_le_bytes);
        sealed(self.xstate.to_vec(), enabled)
    }
}

/// Puts what the kernel looks at into an area that holds some components, and behind it.
fn sealed(mut area: Vec<u8>, components: u64) -> Vec<u8> {
    let size = area.len() as u32;
    area[xstate::LEGACY + 8..xstate::HEAD].fill(0);
    let sw = &mut area[SW_RESERVED..xstate::LEGACY];
    sw.fill(0);
    sw[..4].copy_from_slice(&MAGIC1.to_le_bytes());
    sw[4..8].copy_from_slice(&(size + TAIL as u32).to_le_bytes());
    sw[8..16].copy_from_slice(&components.to_le_bytes());
    sw[16..20].copy_from_slice(&size.to_le_bytes());
    area.extend_from_slice(&MAGIC2.to_le_bytes());
    area
}

/// A frame that the kernel has left in memory.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// Bytes of the frame before its extended state.
    pub head: usize,
    /// Bytes of the extended state.
    pub size: usize,
    /// The stack pointer of what was interrupted.
    pub rsp: u64,
}

/// The frame in `memory` whose extended state is at `offset` and has the address `addr`; None if there is none.
pub fn find(memory: &[u8], offset: usize, addr: u64) -> Option<Found> {
    let word = |at: usize| Some(u32::from_le_bytes(memory.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_le_bytes(memory.get(at..at + 8)?.try_into().ok()?));
    let sw = offset + SW_RESERVED;
    if word(sw)? != MAGIC1 {
        return None;
    }
    let size = word(sw + 16)? as usize;
    if size < xstate::HEAD || word(offset.checked_add(size)?)? != MAGIC2 {
        return None;
    }
    // The kernel's frames begin 8 bytes before a multiple of 16, ours at one.
    let mut heads =
        [XSTATE + 8, XSTATE].into_iter().filter_map(|head| Some((head, offset.checked_sub(head)?)));
    let (head, start) = heads.find(|(_, start)| long(start + FPSTATE) == Some(addr))?;
    Some(Found { head, size, rsp: long(start + RSP)? })
}

/// The extended state of a frame as this machine's kernel takes it, without components in their
/// initial state.
pub fn converted(area: &[u8], from: &Layout, to: &Layout) -> Vec<u8> {
    let (mut new, mut used) = (xstate::convert(area, from, to), xstate::in_use(area));
    if new.len() < xstate::HEAD {
        return new;
    }
    used &= xstate::in_use(&new);
    new[xstate::LEGACY..xstate::LEGACY + 8].copy_from_slice(&used.to_le_bytes());
    new.truncate(to.end(used));
    sealed(new, used | xstate::BASE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ckpt_abi::image::CpuLeaf;

    fn layout(components: u64, places: &[(u32, u32, u32)]) -> Layout {
        let leaf = |&(subleaf, ebx, eax)| CpuLeaf { leaf: 0xd, subleaf, eax, ebx, ecx: 0, edx: 0 };
        Layout::new(&places.iter().map(leaf).collect::<Vec<_>>(), components)
    }

    /// A frame with AVX-512's upper registers in use as one vendor has them, and its layout.
    fn framed() -> (Vec<u8>, Layout) {
        let amd = layout(0x2c7, &[(2, 576, 256), (6, 896, 512), (7, 1408, 1024), (9, 2432, 8)]);
        let mut xstate = vec![0; amd.len()];
        xstate[xstate::COMPONENTS..][..8].copy_from_slice(&0x2c7u64.to_le_bytes());
        xstate[xstate::LEGACY..][..8].copy_from_slice(&0x86u64.to_le_bytes());
        xstate[576..832].fill(2);
        xstate[1408..2432].fill(7);
        let regs = Regs { rsp: 0x1234, ..Regs::default() };
        let frame = Frame { regs: &regs, xstate: &xstate, mask: 0, altstack: [0; 3] };
        (frame.bytes(0x10000), amd)
    }

    #[test]
    fn frames_are_found() {
        let (mut memory, layout) = framed();
        let addr = 0x10000 + XSTATE as u64;
        let found = Found { head: XSTATE, size: layout.len(), rsp: 0x1234 };
        assert_eq!(find(&memory, XSTATE, addr), Some(found));
        assert_eq!(find(&memory, XSTATE, addr + 64), None);
        assert_eq!(find(&memory[..memory.len() - 1], XSTATE, addr), None);
        assert_eq!(find(&memory[64..], XSTATE - 64, addr), None);
        memory[XSTATE + SW_RESERVED] = 0;
        assert_eq!(find(&memory, XSTATE, addr), None);
    }

    #[test]
    fn components_of_a_frame_move_or_go() {
        let (memory, amd) = framed();
        let area = &memory[XSTATE..XSTATE + amd.len()];
        let word =
            |area: &[u8], at: usize| u32::from_le_bytes(area[at..at + 4].try_into().unwrap());
        let size = |area: &[u8]| word(area, SW_RESERVED + 16) as usize;
        let intel = layout(0x2e7, &[(2, 576, 256), (5, 1088, 64), (7, 1664, 1024), (9, 2688, 8)]);
        let new = converted(area, &amd, &intel);
        assert_eq!((size(&new), word(&new, 2688), new.len()), (2688, MAGIC2, 2692));
        assert_eq!((new[576], new[831], new[1408], new[1664], new[2687]), (2, 2, 0, 7, 7));
        let back = converted(&new[..2688], &intel, &amd);
        assert_eq!((size(&back), word(&back, 2432)), (2432, MAGIC2));
        assert_eq!(back[xstate::HEAD..2432], area[xstate::HEAD..2432]);
        let haswell = layout(7, &[(2, 576, 256)]);
        let new = converted(area, &amd, &haswell);
        assert_eq!((size(&new), word(&new, 832), new[831]), (832, MAGIC2, 2));
        assert_eq!(word(&new, xstate::LEGACY), 6);
        assert_eq!(word(&new, SW_RESERVED + 8), 7);
        assert_eq!(converted(area, &amd, &layout(0, &[])).len(), xstate::LEGACY);
    }
}
