// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 1: read all records and see that they make sense.

use super::{MapPath, Options};
use crate::error::{Error, Result};
use crate::image::PAGE;
use crate::image::read::Image;
use ckpt_abi::ABI_VERSION;
use ckpt_abi::image::{
    Chunk, CpuLeaf, Descriptor, Guard, Limit, Machine, NO_OBJECT, Object, Owner, PendingSignal,
    Process, SectionKind, SignalAction, Thread, Timer, Vma, VmaKind,
};
use ckpt_abi::region::{Config, Control, MAGIC};
use std::path::PathBuf;
use zerocopy::{FromZeros, IntoBytes};

/// The records of an image.
pub struct Saved {
    /// Where it was taken.
    pub machine: Machine,
    /// The process.
    pub process: Process,
    /// Its threads, the main one first.
    pub threads: Vec<Thread>,
    /// Their extended states.
    pub xstate: Vec<u8>,
    /// Robust mutexes that they hold.
    pub owners: Vec<Owner>,
    /// Mappings by address.
    pub vmas: Vec<Vma>,
    /// Its memory by address.
    pub memory: Vec<Chunk>,
    /// Content of objects, by object and offset.
    pub contents: Vec<Chunk>,
    /// Guard pages.
    pub guards: Vec<Guard>,
    /// Shared memory.
    pub objects: Vec<Object>,
    /// Descriptors by number.
    pub descriptors: Vec<Descriptor>,
    /// Signal dispositions.
    pub actions: Vec<SignalAction>,
    /// Queued signals.
    pub pending: Vec<PendingSignal>,
    /// Timers.
    pub timers: Vec<Timer>,
    /// Resource limits.
    pub limits: Vec<Limit>,
    /// Auxiliary vector.
    pub auxv: Vec<u8>,
    /// CPUID's answers there.
    pub cpuid: Vec<CpuLeaf>,
    /// Where its files are here.
    pub map_path: MapPath,
    /// Path of the executable.
    pub exe: PathBuf,
    /// Working directory.
    pub cwd: PathBuf,
}

/// Reads the records of an image and checks what the restart builds on.
pub fn check(image: &Image) -> Result<Saved> {
    if image.header().abi_version != ABI_VERSION {
        return Err(Error::new(format!(
            "{} was made by another version of ckpt",
            image.path().display()
        ))
        .hint("execute the file itself, it carries its own"));
    }
    image.verify_frame()?;
    let mut parts = image.processes();
    let (Some(part), None) = (parts.next(), parts.next()) else {
        return Err(Error::new(format!("{} holds several processes", image.path().display()))
            .hint("this ckpt restarts one"));
    };
    let chunks = image.chunks()?;
    let memory = part.memory(&chunks).to_vec();
    let contents = chunks.into_iter().filter(|c| c.object != NO_OBJECT).collect();
    let process: Process = part.record(SectionKind::Process)?;
    let saved = Saved {
        machine: image.record(SectionKind::Machine)?,
        threads: part.records(SectionKind::Threads)?,
        xstate: part.bytes(SectionKind::Xstate, 0)?,
        owners: part.records(SectionKind::Owners)?,
        vmas: part.records(SectionKind::Vmas)?,
        memory,
        contents,
        guards: part.records(SectionKind::Guards)?,
        objects: image.records(SectionKind::Objects)?,
        descriptors: part.records(SectionKind::Descriptors)?,
        actions: part.records(SectionKind::SignalActions)?,
        pending: part.records(SectionKind::PendingSignals)?,
        timers: part.records(SectionKind::Timers)?,
        limits: part.records(SectionKind::Limits)?,
        auxv: part.bytes(SectionKind::Auxv, 0)?,
        // Older images do not have them.
        cpuid: image.records(SectionKind::Cpuid).unwrap_or_default(),
        map_path: MapPath::default(),
        exe: super::path_of(image, process.exe),
        cwd: super::path_of(image, process.cwd),
        process,
    };
    if saved.threads.is_empty() {
        return Err(image.damaged("it has no threads"));
    }
    let ordered = saved.vmas.windows(2).all(|pair| pair[0].end <= pair[1].start);
    let sane = saved.vmas.iter().all(|v| v.start < v.end && v.end <= 1 << 56);
    if !ordered || !sane {
        return Err(image.damaged("its mappings overlap"));
    }
    let apart = saved.guards.windows(2).all(|pair| pair[0].end <= pair[1].start);
    if !apart || saved.guards.iter().any(|g| g.start >= g.end || !g.start.is_multiple_of(PAGE)) {
        return Err(image.damaged("its guard pages overlap"));
    }
    Ok(saved)
}

/// The configuration that the program will have, but for what it is known by.
pub fn config(image: &Image, saved: &Saved, options: &Options) -> Result<Config> {
    Ok(options.settings.clone().apply(control(image, saved)?.config))
}

/// The payload's control page as it was saved.
fn control(image: &Image, saved: &Saved) -> Result<Control> {
    let base = saved.process.region;
    let mut control = Control::new_zeroed();
    let page = control.as_mut_bytes();
    saved.read(image, base, page)?;
    if control.magic != MAGIC {
        return Err(image.damaged("it has no payload"));
    }
    Ok(control)
}

impl Saved {
    /// Reads memory of the program as it was saved; what no chunk has is zero.
    pub fn read(&self, image: &Image, addr: u64, bytes: &mut [u8]) -> Result<()> {
        let end = addr.saturating_add(bytes.len() as u64);
        bytes.fill(0);
        let first = self.memory.partition_point(|c| c.address + u64::from(c.len) <= addr);
        for chunk in self.memory[first..].iter().take_while(|c| c.address < end) {
            let content = image.read_chunk(chunk)?;
            let from = chunk.address.max(addr);
            let to = (chunk.address + u64::from(chunk.len)).min(end);
            let part = &content[(from - chunk.address) as usize..(to - chunk.address) as usize];
            bytes[(from - addr) as usize..(to - addr) as usize].copy_from_slice(part);
        }
        Ok(())
    }

    /// The saved vdso, if the program had one.
    pub fn vdso(&self) -> Option<&Vma> {
        self.vmas.iter().find(|v| v.kind == VmaKind::Vdso as u32)
    }
}
