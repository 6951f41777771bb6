// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 6: write the pages, then the records.

use super::phase2_equip::Equipped;
use super::phase4_refuse;
use super::phase5_snapshot::{OPENED, Pictured};
use super::reader::{self, Found, From, Read, Room};
use super::rolling::{Same, is_trackable};
use super::stream;
use crate::abreast;
use crate::error::{Because, Error, Kind, Result};
use crate::fault::{Point, reach};
use crate::image::PAGE;
use crate::image::base::Base;
use crate::image::write::Writer;
use crate::order;
use crate::proc::Pid;
use crate::proc::maps::Vma;
use crate::proc::{Process, pagemap::Pagemap};
use crate::ptrace::memory::Memory;
use crate::resource::memory::{self, Area, Pages, policy};
use crate::resource::runtime::{glibc, remembered};
use crate::resource::{Common, Gathered, cpu, losses, presumed};
use ckpt_abi::image::{
    CHUNK_MAX, Guard, GuardKind, LossRecord, Machine, SectionKind, process_flag,
};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use zerocopy::FromZeros;

/// An image that is being written.
pub(crate) struct Writing<'a> {
    writer: Writer<'a>,
    common: Common,
    buffer: Vec<u8>,
    room: Room,
    /// What is in the older image that is brought up to date as it is in memory.
    kept: Vec<Range<u64>>,
    /// The processes end with it.
    ends: bool,
    /// Nobody restarts it: another one follows before the program ends. It is read while its process goes on: what that
    /// writes to meanwhile, or gives back, is read again for the next.
    pub(super) is_rough: bool,
    /// What could not be read of it meanwhile.
    pub(super) unread: Vec<Range<u64>>,
}

impl<'a> Writing<'a> {
    /// Begins with an image: of the run that it is of, and with what that began ([`Header::run`]).
    ///
    /// [`Header::run`]: ckpt_abi::image::Header::run
    pub(crate) fn begin(
        writer: Writer<'a>,
        common: Common,
        [run, before]: [[u64; 2]; 2],
        ends: bool,
    ) -> Self {
        let writer = writer.of_run(run, before);
        let writer = if ends { writer.of_ended() } else { writer };
        let several = common.tables.of.len() > 1;
        let writer = if several { writer.of_several() } else { writer };
        let (buffer, room) = (vec![0; CHUNK_MAX as usize], Room::default());
        let (kept, is_rough, unread) = (Vec::new(), false, Vec::new());
        Self { writer, common, buffer, room, kept, ends, is_rough, unread }
    }

    /// Takes over from an older image what is as it was, if that is known. How many bytes remain to be read of a process
    /// when it goes on; None: nothing is known.
    pub(super) fn leave_out<'k>(
        &mut self,
        (equipped, gathered, areas): (&Equipped, &mut Gathered, &mut [Area]),
        same: impl FnOnce(&Base) -> Option<Same<'k>>,
    ) -> Result<Option<u64>> {
        let same = self.writer.base().and_then(|base| same(base));
        let (Some(known), Some(own)) = (same, &mut gathered.process) else {
            return Ok(None);
        };
        if self.writer.base().is_some_and(|base| base.remembers()) {
            own.flags |= process_flag::REMEMBERS_IDS;
        }
        let region = own.region..own.region + own.region_len;
        let pagemap = Pagemap::of(&equipped.process)?;
        let mut bytes = 0;
        for area in areas.iter_mut().filter(|area| !area.at_once) {
            let pages = if is_trackable(area) && !region.contains(&area.start) {
                let [same, other] =
                    known.split(&pagemap.there(area.start, area.end, self.is_rough)?);
                self.kept.extend(same);
                other
            } else {
                reader::pages(&pagemap, area)?
            };
            bytes += pages.iter().map(|pages| pages.end - pages.start).sum::<u64>();
            area.known = Some(pages);
        }
        Ok(Some(bytes))
    }

    /// Writes what has to be read while the process stands still: all of its memory, if it ends, else what no
    /// picture holds.
    pub(crate) fn at_once(&mut self, process: &mut Pictured<'_>, ends: bool) -> Result<()> {
        let areas = std::mem::take(&mut process.areas);
        let is_now = |area: &Area| ends || (area.at_once && !self.is_rough);
        let (now, later): (Vec<_>, _) = areas.into_iter().partition(is_now);
        process.areas = later;
        for (addr, bytes) in std::mem::take(&mut process.gathered.hidden) {
            self.writer.memory(process.gathered.number, addr, &bytes, [0, 0])?;
        }
        let is_told = ends || self.is_rough;
        if !is_told && !process.gathered.vmas.iter().all(policy::is_forked) {
            let own = &process.equipped.process;
            policy::save(own, &mut process.gathered, |vma| !policy::is_forked(vma));
        }
        let presumed = if ends { process.presumed.take() } else { None };
        self.itself(process, &now, presumed)
    }

    /// Writes pages of a process that stands still. If all of them are, its mappings are confirmed meanwhile.
    fn itself(
        &mut self,
        process: &mut Pictured<'_>,
        areas: &[Area],
        presumed: Option<Vec<Vma>>,
    ) -> Result<()> {
        let Equipped { process: own, memory, region, .. } = process.equipped;
        let is_wrong = AtomicBool::new(false);
        let is_last = self.ends && !areas.is_empty() && !process.gathered.has_no_policies;
        // The kernel walks all page tables for both.
        let look = || {
            let all = presumed.as_deref();
            let confirmed = all.map_or(Ok(()), |all| presumed::confirm(all, own));
            is_wrong.fetch_or(confirmed.is_err(), Ordering::Relaxed);
            (confirmed, if is_last { policy::seen(own) } else { Vec::new() })
        };
        let looks = is_last || presumed.is_some();
        let (confirmed, policies) = thread::scope(|scope| {
            let beside = if looks { abreast::beside(scope, &look) } else { None };
            let from = (own, memory, &is_wrong);
            let written = self.pages(false, from, areas, &mut process.gathered);
            let (confirmed, policies) =
                beside.and_then(|thread| thread.join().ok()).unwrap_or_else(look);
            (memory.was_whole(region.base).and(confirmed).and(written), policies)
        });
        policy::note(&mut policies.into_iter(), &mut process.gathered, |_| true);
        confirmed
    }

    /// Writes the rest, from the picture if there is one.
    pub(super) fn rest(
        &mut self,
        process: &mut Pictured<'_>,
        held: Option<Vec<Read<'_>>>,
    ) -> Result<()> {
        let areas = std::mem::take(&mut process.areas);
        let presumed = process.presumed.take().filter(|_| !self.is_rough);
        let own = &process.equipped.process;
        let is_told = self.ends || self.is_rough;
        let policies = |process: &Process, gathered: &mut Gathered| {
            if !is_told {
                policy::save(process, gathered, policy::is_forked);
            }
        };
        if let Some(held) = held {
            // Nothing of the older image has changed yet.
            policies(own, &mut process.gathered);
            presumed.map_or(Ok(()), |all| presumed::confirm(&all, own))?;
            self.held(process, &areas, held)?;
            return unchanged(&process.gathered);
        }
        self.kept();
        match &process.snapshot {
            Some(snapshot) => {
                let (own, memory) = snapshot.open(OPENED)?;
                presumed.map_or(Ok(()), |all| presumed::confirm(&all, &own))?;
                let from = (&own, &memory, &AtomicBool::new(false));
                let written = self.pages(true, from, &areas, &mut process.gathered);
                let whole = memory.was_whole(process.equipped.region.base);
                whole.map_err(|_| snapshot_lost(process.equipped)).and(written)?;
                unchanged(&process.gathered)?;
                policies(&own, &mut process.gathered);
            }
            None => {
                self.itself(process, &areas, presumed).map_err(|error| match error.kind() {
                    // If it has executed another program, that is to move.
                    Kind::Gone if self.is_rough => error.of(Kind::Changed),
                    _ => error,
                })?;
                policies(own, &mut process.gathered);
            }
        }
        Ok(())
    }

    /// What it goes without as a whole.
    pub(super) fn common_losses(&self) -> &[String] {
        &self.common.losses
    }

    /// What the image goes without, in sentences.
    pub(super) fn losses(&mut self, processes: &[Gathered]) -> Vec<String> {
        let mut losses = std::mem::take(&mut self.common.losses);
        losses.extend(losses::sentences(&Vec::from_iter(processes), &self.common.members));
        losses
    }

    /// Writes the pages of some areas, read from the process or its snapshot (`is_picture`), until that is known to be in
    /// vain. That they were there to
    /// the end ([`Memory::was_whole`]) is not known yet then.
    fn pages(
        &mut self,
        is_picture: bool,
        (process, memory, is_vain): (&Process, &Memory, &AtomicBool),
        areas: &[Area],
        gathered: &mut Gathered,
    ) -> Result<()> {
        if areas.is_empty() {
            return Ok(());
        }
        let ids = self.looks_for_ids(process, gathered);
        let from = self.from(is_picture, (process, memory), gathered, ids)?;
        let Self { writer, room, is_rough, unread, .. } = self;
        let abreast = writer.abreast();
        room.read(&from, areas, (None, abreast.as_ref()), &mut |mut read| {
            if *is_rough {
                unread.extend(read.untouchable.drain(..).map(|(_, page)| page..page + PAGE));
            }
            if is_vain.load(Ordering::Relaxed) {
                return Err(Error::new("the memory is not written to its end"));
            }
            let later = if abreast.is_some() { read.bytes() } else { &[] };
            let add = |writer: &mut Writer<'_>| write(writer, &read, areas, gathered);
            let noted = writer.note(later, add)?;
            Ok(Some((read, noted)))
        })
    }

    fn from<'m>(
        &self,
        is_picture: bool,
        (process, memory): (&Process, &'m Memory),
        gathered: &Gathered,
        ids: Option<remembered::Search>,
    ) -> Result<From<'m>> {
        Ok(From {
            memory,
            pagemap: Pagemap::of(process)?,
            shares: is_picture || self.is_rough || self.common.tables.of.len() > 1,
            locks: glibc::Search::new(&gathered.threads),
            ids,
            keys: self.writer.is_of_several(),
            sums: !self.writer.blocks().change_content(),
            sealing: self.writer.blocks().sealing().cloned(),
        })
    }

    /// Reads what remains of a process that stands still, for which there is some room, so that it can go on at once.
    pub(super) fn hold<'s>(
        &mut self,
        process: &mut Pictured<'_>,
        large: &'s mut [u8],
    ) -> Result<Vec<Read<'s>>> {
        let Equipped { process: own, memory, region, .. } = process.equipped;
        let from = self.from(false, (own, memory), &process.gathered, None)?;
        presumed::confirm_empty(&mut process.presumed, &from.pagemap)?;
        let mut held = Vec::new();
        let large = Mutex::new(large);
        self.room.read(&from, &process.areas, (Some(&large), None), &mut |read| {
            held.push(read);
            Ok(None)
        })?;
        memory.was_whole(region.base)?;
        reach(Point::Held);
        Ok(held)
    }

    /// Writes what is held of some areas of a process that has gone on.
    fn held(
        &mut self,
        process: &mut Pictured<'_>,
        areas: &[Area],
        held: Vec<Read<'_>>,
    ) -> Result<()> {
        self.kept();
        let Equipped { process: own, memory, .. } = process.equipped;
        let ids = self.looks_for_ids(own, &process.gathered);
        let from = self.from(false, (own, memory), &process.gathered, ids)?;
        held.into_iter().try_for_each(|mut read| {
            from.complete(&mut read, areas);
            write(&mut self.writer, &read, areas, &mut process.gathered)
        })
    }

    fn kept(&mut self) {
        let kept = std::mem::take(&mut self.kept);
        kept.iter().for_each(|pages| self.writer.keep(pages));
    }

    /// The search for ids that a single process remembers, until one is found. Several restart with theirs.
    fn looks_for_ids(&self, process: &Process, gathered: &Gathered) -> Option<remembered::Search> {
        let own = gathered.process?;
        let looks = self.common.tables.of.len() < 2 && own.flags & process_flag::REMEMBERS_IDS == 0;
        let region = own.region..own.region + own.region_len;
        let text = process.main_stat().map_or(0..0, |stat| stat.arg_start..stat.env_end);
        looks.then(|| remembered::Search::new(&gathered.threads, &gathered.owners, [region, text]))
    }

    /// Writes the files that travel in the image while the processes stand still, a piece at a time.
    pub(crate) fn streams(&mut self) -> Result<()> {
        for stream in std::mem::take(&mut self.common.streams) {
            let object = self.common.objects.get(stream.object as usize);
            let object = object.ok_or_else(|| Error::new("a file is no object"))?;
            let name = self.common.strings.get(object.name);
            stream::write(&mut self.writer, &stream, object.size, &mut self.buffer)
                .because(|| format!("cannot read {}", name.display()))?;
        }
        self.common.tables.flight.end();
        Ok(())
    }

    /// Looks who else uses what the processes share by names; `inside` are the processes themselves.
    pub(crate) fn look_outside(&mut self, inside: HashSet<Pid>) {
        let losses = memory::carried::look_outside(&mut self.common, &inside);
        self.common.losses.extend(losses);
    }

    /// Nobody who is to go on stands still from now on.
    pub(crate) fn may_wait(&mut self) {
        self.writer.may_wait();
    }

    /// Has what is written last already.
    pub(crate) fn settle(&mut self) {
        self.writer.settle();
    }

    /// Writes the records of all processes and seals; the length of the image, and what it goes without.
    ///
    /// # Errors
    /// Nothing is sealed: the sink fails, or it would go without something and must not (`strict`).
    pub(crate) fn finish(
        mut self,
        mut processes: Vec<Gathered>,
        strict: bool,
    ) -> Result<(u64, Vec<String>)> {
        if processes.is_empty() {
            return Err(Error::new("nothing was gathered"));
        }
        let vmas = processes[0].vmas.iter();
        self.writer.divide(vmas.flat_map(|vma| [vma.start, vma.end]).collect());
        let machine = machine(&mut self.common)?;
        self.writer.records(SectionKind::Machine, &[machine])?;
        self.writer.records(SectionKind::Cpuid, cpu::leaves())?;
        let alone = processes.len() == 1;
        for gathered in &mut processes {
            if alone
                && remembered::in_registers(&gathered.threads)
                && let Some(process) = &mut gathered.process
            {
                process.flags |= process_flag::REMEMBERS_IDS;
            }
            order::by_key(&mut gathered.guards, |guard| (guard.start, 0));
            if let (0, Some(process)) = (gathered.number, &gathered.process) {
                self.writer.executable = self.common.strings.get(process.exe);
            }
            records(&mut self.writer, gathered)?;
        }
        let losses = self.losses(&processes);
        if strict && !losses.is_empty() {
            return Err(phase4_refuse::strictly(&losses));
        }
        let (w, strings) = (&mut self.writer, &mut self.common.strings);
        if !self.common.members.is_empty() {
            w.records(SectionKind::Tree, &self.common.members)?;
        }
        if let Some(screen) = self.common.screen {
            w.records(SectionKind::Screen, &[screen])?;
        }
        if !self.common.systemv.is_empty() {
            w.records(SectionKind::SystemV, &self.common.systemv)?;
            w.bytes(SectionKind::SystemVContent, &self.common.messages)?;
        }
        w.records(SectionKind::Objects, &self.common.objects)?;
        let texts: Vec<_> =
            losses.iter().map(|loss| LossRecord { what: strings.add(loss) }).collect();
        w.records(SectionKind::Losses, &texts)?;
        w.bytes(SectionKind::Strings, strings.bytes())?;
        Ok((self.writer.seal()?, losses))
    }
}

/// Writes the records of a process.
fn records(w: &mut Writer<'_>, g: &Gathered) -> Result<()> {
    let process = g.process.ok_or_else(|| Error::new("nothing was gathered"))?;
    let remembers = process.flags & process_flag::REMEMBERS_IDS != 0;
    w.base().into_iter().for_each(|base| base.remember(remembers));
    w.records_of(g.number, SectionKind::Process, &[process])?;
    w.records_of(g.number, SectionKind::Threads, &g.threads)?;
    w.bytes_of(g.number, SectionKind::Xstate, 0, &g.xstate)?;
    w.records_of(g.number, SectionKind::Owners, &g.owners)?;
    w.records_of(g.number, SectionKind::Vmas, &g.vmas)?;
    w.records_of(g.number, SectionKind::Guards, &g.guards)?;
    w.records_of(g.number, SectionKind::Descriptors, &g.descriptors)?;
    w.records_of(g.number, SectionKind::Locks, &g.locks)?;
    w.records_of(g.number, SectionKind::Policies, &g.policies)?;
    if !g.filters.is_empty() {
        w.records_of(g.number, SectionKind::Filters, &g.filters)?;
        w.bytes_of(g.number, SectionKind::FilterCode, 0, &g.filter_code)?;
    }
    w.records_of(g.number, SectionKind::SignalActions, &g.actions)?;
    w.records_of(g.number, SectionKind::PendingSignals, &g.pending)?;
    w.records_of(g.number, SectionKind::Timers, &g.timers)?;
    w.records_of(g.number, SectionKind::Limits, &g.limits)?;
    if !g.undo.is_empty() {
        w.records_of(g.number, SectionKind::Undo, &g.undo)?;
    }
    w.bytes_of(g.number, SectionKind::Auxv, 0, &g.auxv)?;
    for content in &g.contents {
        w.bytes_of(g.number, SectionKind::Content, content.index, &content.bytes)?;
    }
    Ok(())
}

/// Writes what was read of some areas.
fn write(
    writer: &mut Writer<'_>,
    read: &Read,
    areas: &[Area],
    gathered: &mut Gathered,
) -> Result<()> {
    for Found { area, address, bytes, owners, has_id, pieces, known } in read.found() {
        let locks = [gathered.owners.len(), owners.len()].map(|n| n as u32);
        gathered.owners.extend_from_slice(owners);
        if has_id && let Some(process) = &mut gathered.process {
            process.flags |= process_flag::REMEMBERS_IDS;
        }
        if !areas[area].streamed {
            writer.pieces(gathered.number, address, (bytes, known), locks, pieces)?;
        }
    }
    let mut missing = read.untouchable.iter().filter(|(area, _)| !areas[*area].streamed);
    missing.try_for_each(|(area, page)| untouchable(*page, &areas[*area], &mut gathered.guards))
}

/// Notes a page that cannot be read: a guard, or of a mapped file what is behind its end.
fn untouchable(page: u64, area: &Area, guards: &mut Vec<Guard>) -> Result<()> {
    if guards.iter().any(|g| (g.start..g.end).contains(&page)) {
        return Ok(());
    }
    if area.pages != Pages::Whole {
        return Err(Error::new(format!(
            "the kernel does not let anybody read the memory at {page:#x}"
        ))
        .hint("a guard page (Linux 6.13 and 6.14 do not tell them), or the memory is broken"));
    }
    let absent = GuardKind::Absent as u32;
    match guards.last_mut() {
        Some(last) if last.end == page && last.kind == absent => last.end += PAGE,
        _ => guards.push(Guard { start: page, end: page + PAGE, kind: absent, reserved: 0 }),
    }
    Ok(())
}

/// The picture of a process that goes on has been killed.
fn snapshot_lost(equipped: &Equipped) -> Error {
    let pid = equipped.process.pid();
    Error::new(format!("the copy of process {pid} that is saved (ckpt-snapshot) was killed before all of it was written"))
        .hint("by somebody, or for lack of memory: with --stop there is no copy")
}

/// Whether the files whose pages were read from a process that went on have kept still.
///
/// # Errors
/// Of [`crate::error::Kind::Changed`]: one has not.
fn unchanged(gathered: &Gathered) -> Result<()> {
    gathered.files.as_ref().map_or(Ok(()), memory::Files::unchanged)
}

/// The machine, as the first process sees its clocks.
fn machine(common: &mut Common) -> Result<Machine> {
    let names = nix::sys::utsname::uname().because(|| "uname")?;
    let Common { strings, clocks, .. } = common;
    Ok(Machine {
        host: strings.add(names.nodename()),
        kernel: strings.add(names.release()),
        realtime: clocks.realtime,
        monotonic: clocks.since_boot[0],
        boottime: clocks.since_boot[1],
        xcr0: cpu::xcr0(),
        version: strings.add(env!("CARGO_PKG_VERSION")),
        boot: clocks.boot,
        processor: strings.add(cpu::name(cpu::leaves())),
        ..Machine::new_zeroed()
    })
}
