// SPDX-License-Identifier: LGPL-2.1-only
//! Signal frames on the program's stacks: that of the checkpoint signal's own handler, and those of
//! handlers in which the program was.
//!
//! The kernel wrote extended state into them in the layout of the machine where the signal came, and
//! rt_sigreturn(2) will read it in this one's. Of an area that is larger than its own it takes only x87
//! and SSE, without a word (arch/x86/kernel/fpu/signal.c, check_xstate_in_sigframe); components that it
//! has elsewhere, or not at all, are garbage or a fault. So each area is converted where it lies. One
//! for which there is no room gets memory of its own, which stays.

use super::machine;
use super::mapping::Mapping;
use super::phase1_check::{Saved, Whole};
use super::placed::{Placed, read, write};
use super::space::Space;
use crate::error::Result;
use crate::image::PAGE;
use crate::resource::{frame, threads};
use ckpt_abi::image::{VmaKind, VmaRecord};
use nix::libc;
use nix::sys::mman::MapFlags;
use zerocopy::FromZeros;

/// How far above a stack pointer frames are looked for.
const REACH: u64 = 64 << 20;
/// Extended states lie at multiples of this.
const ALIGN: u64 = 64;

/// Brings the extended states of all frames into this machine's layout.
pub(crate) fn convert(
    whole: &Whole<'_>,
    saved: &Saved<'_>,
    placed: &mut Vec<Placed>,
    space: &mut Space,
) -> Result<()> {
    let (from, to) = machine::layouts(whole, saved);
    if from == to {
        return Ok(());
    }
    for (at, frame, area) in find(saved, placed) {
        let new = frame::converted(&area, &from, &to);
        if new.len() <= frame.size + frame::TAIL {
            write(placed, at, &new)?;
            continue;
        }
        let len = (new.len() as u64).next_multiple_of(PAGE);
        let start = space.find(len, 0)?;
        let mut mapping = Mapping::anonymous(start, len, MapFlags::empty())?;
        mapping.write(0, &new)?;
        let (prot, kind) = ((libc::PROT_READ | libc::PROT_WRITE) as u32, VmaKind::Private as u32);
        let record = VmaRecord { start, end: start + len, prot, kind, ..VmaRecord::new_zeroed() };
        let index = placed.partition_point(|p| p.record.start < start);
        placed.insert(
            index,
            Placed { record, mapping, borders: Vec::new(), is_final: false, follows: None },
        );
        let pointer = at - frame.head as u64 + frame::FPSTATE as u64;
        write(placed, pointer, &start.to_le_bytes())?;
    }
    Ok(())
}

/// All frames that lie above the stack pointer of a thread, or of what such a frame interrupted: the
/// address of their extended state, and its bytes.
fn find(saved: &Saved<'_>, placed: &[Placed]) -> Vec<(u64, frame::Found, Vec<u8>)> {
    let mut stacks: Vec<u64> = saved.threads.iter().map(|t| threads::regs(t).rsp).collect();
    let mut frames: Vec<(u64, frame::Found, Vec<u8>)> = Vec::new();
    while let Some(stack) = stacks.pop() {
        let start = stack & !(ALIGN - 1);
        let inside = |p: &&Placed| (p.record.start..p.record.end).contains(&start);
        let Some(home) = placed.iter().find(inside) else { continue };
        let mut memory = vec![0; (home.record.end - start).min(REACH) as usize];
        if !read(placed, start, &mut memory) {
            continue;
        }
        for offset in (0..memory.len()).step_by(ALIGN as usize) {
            let at = start + offset as u64;
            let Some(found) = frame::find(&memory, offset, at) else { continue };
            if frames.iter().all(|(other, ..)| *other != at) {
                stacks.push(found.rsp);
                let area = memory[offset..offset + found.size].to_vec();
                frames.push((at, found, area));
            }
        }
    }
    frames
}
