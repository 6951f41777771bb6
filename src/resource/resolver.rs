// SPDX-License-Identifier: LGPL-2.1-only
//! glibc's lazy resolver on a machine with more registers.
//!
//! `_dl_runtime_resolve_xsave` and its kin (glibc, sysdeps/x86_64/dl-trampoline.h) save registers on
//! the stack, in an area whose size was computed when the program began, with a constant mask of
//! components. On a machine that has more components XSAVE writes beyond that area, over the frames
//! above. So the masks in the restored code are narrowed to the components of the first machine.
//!
//! The code looked for is `mov $MASK,%eax; xor %edx,%edx`, perhaps stores that clear the area's
//! header, and one of xsave, xsavec, xrstor on the stack.

/// The components that glibc saves: SSE, AVX, MPX, AVX-512, and APX from 2.41.
pub(crate) const SAVED: u64 = 0xee | 1 << 19;

/// Bytes of `mov $imm32, %eax; xor %edx, %edx`.
const HEAD: usize = 7;
/// Bytes from there to the end of what saves or restores, at most.
const REACH: usize = 96;

/// Narrows the masks in a piece of code; how many were.
pub(crate) fn narrow(code: &mut [u8], components: u64) -> usize {
    let mut count = 0;
    for at in 0..code.len().saturating_sub(HEAD) {
        if code[at] != 0xb8 {
            continue;
        }
        let end = code.len().min(at + REACH);
        let Some(mask) = mask(&code[at..end]) else { continue };
        let narrow = mask & components as u32;
        if narrow != mask {
            code[at + 1..at + 5].copy_from_slice(&narrow.to_le_bytes());
            count += 1;
        }
    }
    count
}

/// The mask, if the code is the resolver's.
fn mask(code: &[u8]) -> Option<u32> {
    let (head, mut rest) = code.split_at_checked(HEAD)?;
    let mask = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
    let known = u64::from(mask) & !SAVED == 0 && mask & 2 != 0;
    if !known || head[5..] != [0x31, 0xd2] {
        return None;
    }
    // mov %rdx, offset(%rsp): the header of the area is cleared in between.
    loop {
        rest = match rest {
            [0x48, 0x89, 0x94, 0x24, _, _, _, _, after @ ..] => after,
            [0x48, 0x89, 0x54, 0x24, _, after @ ..] => after,
            _ => break,
        };
    }
    // xsave, xrstor or xsavec at an offset from %rsp: mod is 01 or 10, the rest says "SIB".
    let [0x0f, opcode, operand, 0x24, ..] = rest else { return None };
    let known = matches!((opcode, operand >> 3 & 7), (0xae, 4 | 5) | (0xc7, 4));
    (known && matches!(operand >> 6, 1 | 2) && operand & 7 == 4).then_some(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    const XRSTOR: [u8; 14] =
        [0x90, 0xb8, 0xee, 0, 0, 0, 0x31, 0xd2, 0x0f, 0xae, 0x6c, 0x24, 0x40, 0x90];
    const XSAVEC: [u8; 28] = [
        0xb8, 0xee, 0, 0, 0, 0x31, 0xd2, 0x48, 0x89, 0x94, 0x24, 0x50, 2, 0, 0, 0x48, 0x89, 0x94,
        0x24, 0x78, 2, 0, 0, 0x0f, 0xc7, 0x64, 0x24, 0x40,
    ];

    #[test]
    fn the_masks_are_narrowed_once() {
        let mut code = [XSAVEC.as_slice(), &XRSTOR].concat();
        assert_eq!(narrow(&mut code, 0x207), 2);
        assert_eq!((code[1], code[30]), (0x06, 0x06));
        assert_eq!(narrow(&mut code, 0x207), 0);
        assert_eq!(narrow(&mut code, 0x3), 2);
        assert_eq!(code[1], 2);
    }

    #[test]
    fn other_code_is_left_alone() {
        for (at, byte) in
            [(1, 0xb9), (6, 0x33), (8, 0x0e), (9, 0xaf), (11, 0x25), (3, 1), (2, 0xff)]
        {
            let mut code = XRSTOR;
            code[at] = byte;
            let before = code;
            assert_eq!(narrow(&mut code, 0x3), 0, "{at}");
            assert_eq!(code, before);
        }
        assert_eq!(narrow(&mut [], 0), 0);
        assert_eq!(narrow(&mut XSAVEC[..20].to_vec(), 0), 0);
    }

    #[test]
    fn the_resolver_of_this_system_is_known() {
        let Ok(mut code) = std::fs::read("/lib64/ld-linux-x86-64.so.2") else { return };
        // XSAVE and XSAVEC, each with its XRSTOR; later versions have TLS descriptors besides.
        let count = narrow(&mut code, 0x3);
        assert!(count >= 4 && count.is_multiple_of(2), "{count}");
    }
}
