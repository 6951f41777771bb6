// SPDX-License-Identifier: LGPL-2.1-only
//! The signal frames that the kernel has left on a program's stacks ([`crate::ptrace::frame`] has their form).

use super::xstate::{self, Layout};
use crate::ptrace::frame::{
    BASE, HEAD, LEGACY, MAGIC1, MAGIC2, RSP, SW_RESERVED, XSTATE, in_use, sealed,
};
pub(crate) use crate::ptrace::frame::{FPSTATE, TAIL};

/// A frame that the kernel has left in memory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Bytes of the frame before its extended state.
    pub head: usize,
    /// Bytes of the extended state.
    pub size: usize,
    /// The stack pointer of what was interrupted.
    pub rsp: u64,
}

/// The frame in `memory` whose extended state is at `offset` and has the address `addr`; None if there is none.
pub(crate) fn find(memory: &[u8], offset: usize, addr: u64) -> Option<Found> {
    let word = |at: usize| Some(u32::from_le_bytes(memory.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_le_bytes(memory.get(at..at + 8)?.try_into().ok()?));
    let sw = offset + SW_RESERVED;
    if word(sw)? != MAGIC1 {
        return None;
    }
    let size = word(sw + 16)? as usize;
    if size < HEAD || word(offset.checked_add(size)?)? != MAGIC2 {
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
pub(crate) fn converted(area: &[u8], from: &Layout, to: &Layout) -> Vec<u8> {
    let (mut new, mut used) = (xstate::convert(area, from, to), in_use(area));
    if new.len() < HEAD {
        return new;
    }
    used &= in_use(&new);
    new[LEGACY..LEGACY + 8].copy_from_slice(&used.to_le_bytes());
    new.truncate(to.end(used));
    sealed(new, used | BASE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptrace::frame::COMPONENTS;
    use ckpt_abi::image::CpuLeaf;

    fn layout(components: u64, places: &[(u32, u32, u32)]) -> Layout {
        let leaf = |&(subleaf, ebx, eax)| CpuLeaf { leaf: 0xd, subleaf, eax, ebx, ecx: 0, edx: 0 };
        Layout::new(&places.iter().map(leaf).collect::<Vec<_>>(), components)
    }

    /// A frame with AVX-512's upper registers in use as one vendor has them, and its layout.
    fn framed() -> (Vec<u8>, Layout) {
        let amd = layout(0x2c7, &[(2, 576, 256), (6, 896, 512), (7, 1408, 1024), (9, 2432, 8)]);
        let mut xstate = vec![0; amd.len()];
        xstate[COMPONENTS..][..8].copy_from_slice(&0x2c7u64.to_le_bytes());
        xstate[LEGACY..][..8].copy_from_slice(&0x86u64.to_le_bytes());
        xstate[576..832].fill(2);
        xstate[1408..2432].fill(7);
        let mut frame = vec![0; XSTATE];
        frame[RSP..RSP + 8].copy_from_slice(&0x1234u64.to_le_bytes());
        frame[FPSTATE..FPSTATE + 8].copy_from_slice(&(0x10000 + XSTATE as u64).to_le_bytes());
        frame.extend(sealed(xstate, 0x2c7));
        (frame, amd)
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
        assert_eq!(back[HEAD..2432], area[HEAD..2432]);
        let haswell = layout(7, &[(2, 576, 256)]);
        let new = converted(area, &amd, &haswell);
        assert_eq!((size(&new), word(&new, 832), new[831]), (832, MAGIC2, 2));
        assert_eq!(word(&new, LEGACY), 6);
        assert_eq!(word(&new, SW_RESERVED + 8), 7);
        assert_eq!(converted(area, &amd, &layout(0, &[])).len(), LEGACY);
    }
}
