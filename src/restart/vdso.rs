// SPDX-License-Identifier: LGPL-2.1-only
//! Which vdso the program has: this kernel's, if it is the one that it had, else its own, whose entry points lead to
//! this kernel's.

use super::mapping::Mapping;
use super::phase1_check::Saved;
use super::placed::Placed;
use super::space::Space;
use crate::error::{Because, Result};
use crate::proc;
use crate::resource::vdso;
use ckpt_abi::image::{VmaKind, VmaRecord};
use nix::libc;
use nix::sys::mman::MapFlags;
use zerocopy::FromZeros;

/// Longest vdso in bytes; those of all kernels so far are of a few pages.
const VDSO_MAX: u64 = 1 << 20;

/// Where the vdso will be.
pub(crate) struct Vdso {
    /// Address for ARCH_MAP_VDSO_64; None where one of the kernels has no vdso.
    pub map_at: Option<u64>,
}

/// Decides where the vdso goes, and how the saved one's code has to look if it differs from this
/// kernel's.
pub(super) fn place(
    saved: &Saved<'_>,
    own: &[proc::maps::Vma],
    space: &mut Space,
) -> Result<(Vdso, Option<Vec<u8>>)> {
    let here = vdso::Place::find(own);
    let Some(record) = saved.vdso() else { return Ok((Vdso { map_at: None }, None)) };
    let len = record.end - record.start;
    if len > VDSO_MAX {
        return Err(saved.part.image().damaged("its vdso is too long"));
    }
    let mut old = vec![0; len as usize];
    saved.read(record.start, &mut old)?;
    if here.is_empty() {
        vdso::redirect(&mut old, &[], 0)?;
        return Ok((Vdso { map_at: None }, Some(old)));
    }
    let new = own_bytes(here.vdso, here.vdso_len)?;
    let process = &saved.process;
    if new == old && process.vvar_len == here.vvar_len && process.vvar_len != 0 {
        return Ok((Vdso { map_at: Some(process.vvar) }, None));
    }
    let at = space.find(here.len(), 0)?;
    vdso::redirect(&mut old, &new, at + (here.vdso - here.start()))?;
    Ok((Vdso { map_at: Some(at) }, Some(old)))
}

/// Zeros where the saved vdso has its data. Code that a signal interrupted inside of the saved vdso
/// finds a changed sequence count there and no clock that user space could read (VDSO_CLOCKMODE_NONE
/// is 0, include/vdso/clocksource.h), so it makes the system call.
pub(super) fn data(saved: &Saved<'_>, stub: &Space, space: &mut Space) -> Result<Option<Placed>> {
    let process = &saved.process;
    let (start, end) = (process.vvar, process.vvar + process.vvar_len);
    if start == end || saved.vmas.iter().any(|v| v.start < end && start < v.end) {
        return Ok(None);
    }
    let record = VmaRecord {
        start,
        end,
        prot: libc::PROT_READ as u32,
        kind: VmaKind::Private as u32,
        ..VmaRecord::new_zeroed()
    };
    let at = if stub.is_free(start, end) { start } else { space.find(end - start, start)? };
    let mapping = Mapping::anonymous(at, end - start, MapFlags::MAP_NORESERVE)?;
    Ok(Some(Placed { record, mapping, borders: Vec::new(), is_final: false, follows: None }))
}

fn own_bytes(addr: u64, len: u64) -> Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let memory = std::fs::File::open("/proc/self/mem").because(|| "cannot read our own memory")?;
    let mut bytes = vec![0; len as usize];
    memory.read_exact_at(&mut bytes, addr).because(|| "cannot read our own vdso")?;
    Ok(bytes)
}
