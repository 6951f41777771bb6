// SPDX-License-Identifier: LGPL-2.1-only
//! Extended state (x87, SSE, AVX, …) from one machine's layout to another's.
//!
//! Outside of the first 576 bytes every component lies where CPUID 0xd says, and the vendors do not
//! agree (PKRU is at 2688 with Intel, at 2432 with AMD). So an area is taken apart by component with
//! the sizes of the machine that saved it, and put together with those of this one.

use crate::ptrace::frame::PKRU;
pub(crate) use crate::ptrace::frame::{BASE, COMPONENTS, HEAD, LEGACY, in_use};
use ckpt_abi::image::CpuLeaf;

/// What Linux gives a thread: keys but the first forbidden (arch/x86/mm/pkeys.c).
const PKRU_DEFAULT: u32 = 0x5555_5554;
const MXCSR: usize = 24;
const MXCSR_MASK: u32 = 0xffff;
/// AMX tile data, which a process gets on demand (arch_prctl(2), ARCH_REQ_XCOMP_PERM).
pub(crate) const DYNAMIC: u64 = 1 << 18;

/// Where a machine has the components of a non-compacted XSAVE area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    components: u64,
    places: Vec<(u32, usize, usize)>,
}

impl Layout {
    /// The layout of a machine with these answers of CPUID for `components` of its XCR0.
    pub(crate) fn new(leaves: &[CpuLeaf], components: u64) -> Self {
        let sizes = leaves.iter().filter(|l| l.leaf == 0xd && l.subleaf >= 2);
        let places = sizes
            .filter(|l| l.subleaf < 63 && components >> l.subleaf & 1 != 0 && l.eax != 0)
            .map(|l| (l.subleaf, l.ebx as usize, l.eax as usize))
            .collect();
        Self { components, places }
    }

    /// Bytes of an area; 512 on machines without XSAVE.
    pub(crate) fn len(&self) -> usize {
        if self.components == 0 { LEGACY } else { self.end(u64::MAX) }
    }

    /// Bytes of an area with some of the components.
    pub(crate) fn end(&self, components: u64) -> usize {
        let places = self.places.iter().filter(|(i, ..)| components >> i & 1 != 0);
        places.map(|(_, offset, size)| offset + size).max().unwrap_or(0).max(HEAD)
    }

    fn place(&self, component: u32) -> Option<(usize, usize)> {
        self.places.iter().find(|(i, ..)| *i == component).map(|(_, at, len)| (*at, *len))
    }
}

fn content<'a>(area: &'a [u8], layout: &Layout, component: u32) -> Option<&'a [u8]> {
    let (at, len) = layout.place(component)?;
    let used = in_use(area) >> component & 1 != 0;
    area.get(at..at + len).filter(|_| used)
}

/// The area as `to` has it. Components that it does not have are left out ([`lost`] names them).
pub(crate) fn convert(area: &[u8], from: &Layout, to: &Layout) -> Vec<u8> {
    let mut out = vec![0; to.len()];
    let legacy = area.len().min(LEGACY);
    out[..legacy].copy_from_slice(&area[..legacy]);
    // A bit that this processor does not know would make it refuse the whole area.
    let mxcsr = u32::from_le_bytes([out[MXCSR], out[MXCSR + 1], out[MXCSR + 2], out[MXCSR + 3]]);
    out[MXCSR..MXCSR + 4].copy_from_slice(&(mxcsr & MXCSR_MASK).to_le_bytes());
    out[COMPONENTS..LEGACY].fill(0);
    if to.components == 0 {
        return out;
    }
    // The kernel fills in the initial values of x87 and SSE, so both are valid in any case.
    let mut present = BASE;
    for &(component, at, len) in &to.places {
        if let Some(bytes) = content(area, from, component) {
            let len = len.min(bytes.len());
            out[at..at + len].copy_from_slice(&bytes[..len]);
            present |= 1 << component;
        } else if component == PKRU && from.place(PKRU).is_none() {
            out[at..at + 4].copy_from_slice(&PKRU_DEFAULT.to_le_bytes());
            present |= 1 << component;
        }
    }
    out[COMPONENTS..COMPONENTS + 8].copy_from_slice(&to.components.to_le_bytes());
    out[LEGACY..LEGACY + 8].copy_from_slice(&present.to_le_bytes());
    out
}

/// The registers that hold something and that `to` does not have, each with the feature that uses them
/// ([`super::cpu::table`]).
pub(crate) fn lost(area: &[u8], from: &Layout, to: &Layout) -> Vec<(&'static str, &'static str)> {
    const NAMES: [(u32, &str, &str); 6] = [
        (2, "AVX registers", "avx"),
        (5, "AVX-512 mask registers", "avx512f"),
        (6, "AVX-512 registers", "avx512f"),
        (7, "AVX-512 registers 16 to 31", "avx512f"),
        (18, "AMX tiles", "amx_tile"),
        (19, "APX registers", "apx"),
    ];
    let missing = NAMES.iter().filter(|(component, ..)| {
        let bytes = content(area, from, *component).unwrap_or_default();
        to.place(*component).is_none() && bytes.iter().any(|b| *b != 0)
    });
    missing.map(|(_, name, feature)| (*name, *feature)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(components: u64, places: &[(u32, u32, u32)]) -> Layout {
        let leaf = |&(subleaf, ebx, eax)| CpuLeaf { leaf: 0xd, subleaf, eax, ebx, ecx: 0, edx: 0 };
        Layout::new(&places.iter().map(leaf).collect::<Vec<_>>(), components)
    }

    fn amd() -> Layout {
        layout(0x207, &[(2, 576, 256), (9, 2432, 8)])
    }

    fn intel() -> Layout {
        layout(
            0x2e7,
            &[(2, 576, 256), (5, 1088, 64), (6, 1152, 512), (7, 1664, 1024), (9, 2688, 8)],
        )
    }

    fn area(layout: &Layout, present: u64) -> Vec<u8> {
        let mut area = vec![0; layout.len()];
        area[..416].fill(1);
        area[24..28].copy_from_slice(&0x2_1f80u32.to_le_bytes());
        area[512..520].copy_from_slice(&present.to_le_bytes());
        for (component, at, len) in &layout.places {
            area[*at..at + len].fill(*component as u8);
        }
        area
    }

    #[test]
    fn components_move_to_their_places() {
        let moved = convert(&area(&amd(), 0x207), &amd(), &intel());
        assert_eq!(moved.len(), 2696);
        assert_eq!((moved[0], moved[400], moved[576], moved[2688]), (1, 1, 2, 9));
        assert_eq!(&moved[512..520], &0x207u64.to_le_bytes());
        assert_eq!(&moved[24..28], &0x1f80u32.to_le_bytes());
        assert_eq!(&moved[COMPONENTS..COMPONENTS + 8], &0x2e7u64.to_le_bytes());
        assert!(moved[1088..2688].iter().all(|b| *b == 0));
        let back = convert(&moved, &intel(), &amd());
        assert_eq!(back[2432], 9);
        assert_eq!(back.len(), 2440);
    }

    #[test]
    fn what_is_in_use_and_missing_is_named() {
        let full = area(&intel(), 0x2e7);
        assert_eq!(lost(&full, &intel(), &amd()).len(), 3);
        assert!(lost(&area(&intel(), 0x207), &intel(), &amd()).is_empty());
        assert!(lost(&full, &intel(), &intel()).is_empty());
    }

    #[test]
    fn machines_without_xsave() {
        let old = layout(0, &[]);
        assert_eq!(old.len(), 512);
        let moved = convert(&area(&intel(), 0x2e7), &intel(), &old);
        assert_eq!((moved.len(), moved[0], moved[COMPONENTS]), (512, 1, 0));
        let back = convert(&moved, &old, &amd());
        assert_eq!(&back[512..520], &0x203u64.to_le_bytes());
        assert_eq!(&back[2432..2436], &PKRU_DEFAULT.to_le_bytes());
        assert_eq!(back[0], 1);
    }

    #[test]
    fn a_short_area_does_no_harm() {
        let whole = area(&intel(), 0x2e7);
        for len in [0, 100, 512, 576, 832, 1200, 2690] {
            assert_eq!(convert(&whole[..len], &intel(), &intel()).len(), 2696);
        }
    }
}
