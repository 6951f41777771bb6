// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 1: read all records and see that they make sense.

use super::{Given, MapPath, MapPort, Options};
use crate::error::{Error, Result};
use crate::image::read::{Image, Part};
use crate::resource::{kinship, memory, privileges, regained, seccomp, threads};
use ckpt_abi::ABI_VERSION;
use ckpt_abi::image::{
    Chunk, CpuLeaf, Descriptor, FileLock, Filter, Guard, LimitRecord, LossRecord, Machine,
    NumaPolicy, Object, ObjectKind, Owner, PendingSignal, ProcessRecord, SectionKind, SignalAction,
    SystemV, Text, Thread, Timer, Undo, VmaKind, VmaRecord, WHOLE_IMAGE, process_flag,
};
use ckpt_abi::region::{Config, Control, MAGIC};
use std::path::PathBuf;
use zerocopy::{FromZeros, IntoBytes};

/// What an image says of the whole checkpoint, whichever of its processes is restarted.
pub struct Whole<'a> {
    /// The image.
    pub image: &'a Image,
    /// Where it was taken.
    pub machine: Machine,
    /// CPUID's answers there.
    pub cpuid: Vec<CpuLeaf>,
    /// Files whose content is in the image, and shared memory.
    pub objects: Vec<Object>,
    /// The System V objects of the processes.
    pub systemv: Vec<SystemV>,
    /// All content.
    chunks: Vec<Chunk>,
    /// Where files of the image are here.
    map_path: MapPath,
    /// And its ports.
    pub(crate) map_port: MapPort,
    /// What the program is given.
    pub(crate) given: Given,
    /// Whether TCP connections to others go on that were saved so.
    pub(crate) keeps_tcp: bool,
}

/// The records of one process.
pub struct Saved<'a> {
    /// Where they are from.
    pub part: Part<'a>,
    /// The process.
    pub process: ProcessRecord,
    /// Its threads, the main one first.
    pub threads: Vec<Thread>,
    /// Their extended states.
    pub xstate: Vec<u8>,
    /// Robust mutexes that they hold.
    pub owners: Vec<Owner>,
    /// Mappings by address.
    pub vmas: Vec<VmaRecord>,
    /// Its memory by address.
    pub memory: Vec<Chunk>,
    /// Guard pages.
    pub guards: Vec<Guard>,
    /// Descriptors by number.
    pub descriptors: Vec<Descriptor>,
    /// Locks on files.
    pub locks: Vec<FileLock>,
    /// NUMA policies.
    pub policies: Vec<NumaPolicy>,
    /// Filters of system calls.
    pub filters: Vec<Filter>,
    /// Their programs.
    pub filter_code: Vec<u8>,
    /// Signal dispositions.
    pub actions: Vec<SignalAction>,
    /// Queued signals.
    pub pending: Vec<PendingSignal>,
    /// Timers.
    pub timers: Vec<Timer>,
    /// What it is to give back of semaphores.
    pub undo: Vec<Undo>,
    /// Resource limits.
    pub limits: Vec<LimitRecord>,
    /// Auxiliary vector.
    pub auxv: Vec<u8>,
    /// Path of the executable here.
    pub exe: PathBuf,
    /// Working directory here.
    pub cwd: PathBuf,
    /// Root directory here; empty: ours.
    pub root: PathBuf,
    /// Supplementary groups.
    pub supplementary: Vec<u32>,
}

/// Reads the records of an image's first process and checks what the restart builds on.
pub fn check<'a>(image: &'a Image, map_path: &MapPath) -> Result<(Whole<'a>, Saved<'a>)> {
    let (whole, mut all) = check_all(image, map_path)?;
    Ok((whole, all.swap_remove(0)))
}

/// Reads the records of an image, by process, of which there is one at least, and checks what the restart builds on.
pub fn check_all<'a>(image: &'a Image, map_path: &MapPath) -> Result<(Whole<'a>, Vec<Saved<'a>>)> {
    let whole = Whole::check(image, map_path)?;
    let all =
        image.processes().map(|part| Saved::check(&whole, part)).collect::<Result<Vec<_>>>()?;
    if all.is_empty() {
        return Err(image.damaged("it has no process"));
    }
    Ok((whole, all))
}

impl<'a> Whole<'a> {
    fn check(image: &'a Image, map_path: &MapPath) -> Result<Self> {
        if image.header().abi_version != ABI_VERSION {
            return Err(Error::new(format!(
                "{} was made by another version of ckpt",
                image.path().display()
            ))
            .hint("execute the file itself, it carries its own"));
        }
        image.verify_frame()?;
        Ok(Self {
            image,
            machine: image.record(SectionKind::Machine)?,
            // Older images do not have them.
            cpuid: image.records(SectionKind::Cpuid).unwrap_or_default(),
            objects: image.records(SectionKind::Objects)?,
            systemv: image.records(SectionKind::SystemV).unwrap_or_default(),
            chunks: image.chunks()?,
            map_path: map_path.clone(),
            map_port: MapPort::default(),
            given: Given::default(),
            keeps_tcp: true,
        })
    }

    /// The content of an object, by offset.
    pub fn content(&self, object: u32) -> &[Chunk] {
        let first = self.chunks.partition_point(|c| (c.process, c.object) < (WHOLE_IMAGE, object));
        let len = self.chunks[first..].partition_point(|c| c.object == object);
        &self.chunks[first..first + len]
    }

    /// Reads the content of an object into memory that is zero.
    pub(crate) fn read(&self, object: u32, memory: &mut [u8]) -> Result<()> {
        for chunk in self.content(object) {
            let bytes = self.image.read_chunk(chunk)?;
            let place = memory.get_mut(chunk.address as usize..).unwrap_or_default();
            let len = bytes.len().min(place.len());
            place[..len].copy_from_slice(&bytes[..len]);
        }
        Ok(())
    }

    /// Goes without the System V objects: what was mapped becomes memory of the program alone.
    pub(crate) fn unfurnish(&mut self, warnings: &mut Vec<String>) {
        if !self.systemv.is_empty() {
            self.systemv.clear();
            warnings.push("the program's System V objects are not made again (--ids new)".into());
        }
        let segments = self.objects.iter_mut().filter(|o| o.kind == ObjectKind::Segment as u32);
        segments.for_each(|object| object.kind = ObjectKind::Memory as u32);
    }

    /// Where a file of the image is here.
    pub fn path(&self, text: Text) -> PathBuf {
        self.map_path.apply(self.image.text(text).into())
    }
}

impl<'a> Saved<'a> {
    /// Whether it was stopped.
    pub(super) fn stands_still(&self) -> bool {
        self.process.flags & process_flag::STOPPED != 0
    }

    fn check(whole: &Whole<'a>, part: Part<'a>) -> Result<Self> {
        let process: ProcessRecord = part.record(SectionKind::Process)?;
        let saved = Self {
            part,
            threads: part.records(SectionKind::Threads)?,
            xstate: part.bytes(SectionKind::Xstate, 0)?,
            owners: part.records(SectionKind::Owners)?,
            vmas: part.records(SectionKind::Vmas)?,
            memory: part.memory(&whole.chunks).to_vec(),
            guards: part.records(SectionKind::Guards)?,
            descriptors: part.records(SectionKind::Descriptors)?,
            locks: part.records(SectionKind::Locks)?,
            policies: part.records(SectionKind::Policies).unwrap_or_default(),
            filters: part.records(SectionKind::Filters).unwrap_or_default(),
            filter_code: part.bytes(SectionKind::FilterCode, 0).unwrap_or_default(),
            actions: part.records(SectionKind::SignalActions)?,
            pending: part.records(SectionKind::PendingSignals)?,
            timers: part.records(SectionKind::Timers)?,
            undo: part.records(SectionKind::Undo).unwrap_or_default(),
            limits: part.records(SectionKind::Limits)?,
            auxv: part.bytes(SectionKind::Auxv, 0)?,
            exe: whole.path(process.exe),
            cwd: whole.path(process.cwd),
            root: whole.path(process.root),
            supplementary: privileges::groups(whole.image.text(process.supplementary)),
            process,
        };
        let nonsense = threads::nonsense(&saved.threads, &saved.xstate)
            .or_else(|| memory::nonsense(&saved.vmas, &saved.guards))
            .or_else(|| memory::policy::nonsense(&saved.policies, &saved.vmas))
            .or_else(|| seccomp::nonsense(&saved.threads, &saved.filters, &saved.filter_code));
        match nonsense {
            Some(what) => Err(whole.image.damaged(what)),
            None => Ok(saved),
        }
    }

    /// Reads memory of the program as it was saved; what no chunk has is zero.
    pub fn read(&self, addr: u64, bytes: &mut [u8]) -> Result<()> {
        let end = addr.saturating_add(bytes.len() as u64);
        bytes.fill(0);
        let first = self.memory.partition_point(|c| c.address + u64::from(c.len) <= addr);
        for chunk in self.memory[first..].iter().take_while(|c| c.address < end) {
            let content = self.part.image().read_chunk(chunk)?;
            let from = chunk.address.max(addr);
            let to = (chunk.address + u64::from(chunk.len)).min(end);
            let part = &content[(from - chunk.address) as usize..(to - chunk.address) as usize];
            bytes[(from - addr) as usize..(to - addr) as usize].copy_from_slice(part);
        }
        Ok(())
    }

    /// What the kernel granted it that this restart does not give; `as_user` in [`regained::denied`].
    ///
    /// # Errors
    /// Its root directory is not there.
    pub(crate) fn denied(&self, as_user: bool) -> Result<impl Iterator<Item = String>> {
        let rights = regained::denied(&self.process, &self.supplementary, as_user);
        Ok(rights.into_iter().chain(regained::find_root(&self.root, as_user)?))
    }

    /// The same of all.
    ///
    /// # Errors
    /// A root directory is not there.
    pub(crate) fn all_denied(all: &[Self], as_user: bool) -> Result<Vec<String>> {
        let each = all.iter().map(|saved| saved.denied(as_user));
        Ok(each.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// The saved vdso, if the program had one.
    pub fn vdso(&self) -> Option<&VmaRecord> {
        self.vmas.iter().find(|v| v.kind == VmaKind::Vdso as u32)
    }
}

/// The configuration that the program will have, but for what it is known by.
pub fn config(saved: &Saved<'_>, options: &Options) -> Result<Config> {
    Ok(options.settings.clone().apply(control(saved)?.config))
}

/// The payload's control page as it was saved.
fn control(saved: &Saved<'_>) -> Result<Control> {
    let base = saved.process.region;
    let mut control = Control::new_zeroed();
    let page = control.as_mut_bytes();
    saved.read(base, page)?;
    if control.magic != MAGIC {
        return Err(saved.part.image().damaged("it has no payload"));
    }
    Ok(control)
}

/// What is to be said again of the processes that the image goes without.
pub(crate) fn missing(image: &Image) -> Result<Vec<String>> {
    let losses: Vec<LossRecord> = image.records(SectionKind::Losses)?;
    let losses = losses.iter().map(|loss| image.text(loss.what).to_string_lossy().into_owned());
    Ok(losses.filter(|loss| kinship::is_missing(loss)).map(|l| format!("not saved: {l}")).collect())
}
